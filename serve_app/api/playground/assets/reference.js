// Taking after a picture: a reference image, how strongly it acts, and the IP-Adapter that looks at it.

import { fill, find, make } from "./dom.js";
import { readNumber, setInput } from "./form.js";
import { PictureInput } from "./picture-input.js";
import { modelsWith } from "./server.js";

export class Reference {
  constructor() {
    this._wanted = "";
    this.input = new PictureInput("reference-picture", "Picture to take after", () => this._changed());
    find("reference-adapter").addEventListener("change", (event) => (this._wanted = event.target.value));
    find("model_name").addEventListener("change", () => this.showAdapters());
    addEventListener("formwritten", () => this.showAdapters());
  }

  /** Offers the adapters that the chosen model has; with an automatic choice, those of all models. */
  showAdapters() {
    const chosen = find("model_name").value;
    const models = modelsWith(null).filter(({ name }) => !chosen || name === chosen);
    const adapters = [...new Set(models.flatMap(({ ip_adapters }) => ip_adapters))];
    const select = find("reference-adapter");
    fill(select, ...adapters.map((name) => make("option", { value: name }, name)));
    if (adapters.includes(this._wanted)) select.value = this._wanted;
    find("reference-adapters").hidden = adapters.length < 2;
    find("reference-fold").hidden = adapters.length === 0;
  }

  /** What is set here, as a request has it; null without a picture, or a model that could look at it. Throws Mistake. */
  read() {
    if (!this.input.blob || find("reference-fold").hidden) return null;
    return { adapter: find("reference-adapter").value, scale: readNumber("reference-scale", "reference") ?? 1 };
  }

  write(reference, file) {
    if (reference) {
      this._wanted = reference.adapter ?? "";
      this.showAdapters();
      // Left open where no model has it any more: another one would make another picture.
      if (reference.adapter) find("reference-adapter").value = reference.adapter;
      setInput("reference-scale", reference.scale ?? 1);
    }
    this.input.set(reference ? (file ?? null) : null);
    find("reference-fold").open ||= this.input.blob !== null;
  }

  _changed() {
    find("reference-options").hidden = find("reference-tag").hidden = this.input.blob === null;
  }
}
