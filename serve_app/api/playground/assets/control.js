// Following a shape: a ControlNet, the picture that it follows, and the hint that is made of it.

import { ask, BASE, Refusal } from "./api.js";
import { fill, find, make, showFile } from "./dom.js";
import { Mistake, readNumber, setInput } from "./form.js";
import { PictureInput } from "./picture-input.js";
import { modelsWith } from "./server.js";

const NAMES = { canny: "Edges", depth: "Depth", pose: "Pose", segmentation: "Regions" };

export class Control {
  constructor() {
    this._asking = null;
    this._wanted = "";
    this.input = new PictureInput("control-picture", "Picture to follow", () => this._changed());
    find("control-type").addEventListener("change", (event) => {
      this._wanted = event.target.value;
      this._changed();
    });
    find("control-preprocess").addEventListener("change", () => this._changed());
    find("model_name").addEventListener("change", () => this.showTypes());
    addEventListener("formwritten", () => this.showTypes());
  }

  /** Offers the types that the chosen model has; with an automatic choice, those of all models. */
  showTypes() {
    const chosen = find("model_name").value;
    const models = modelsWith(null).filter(({ name }) => !chosen || name === chosen);
    const types = [...new Set(models.flatMap(({ controlnets }) => controlnets))];
    const select = find("control-type");
    const before = select.value;
    fill(select, ...types.map((type) => make("option", { value: type }, NAMES[type] ?? type)));
    if (types.includes(this._wanted)) select.value = this._wanted;
    find("control-fold").hidden = types.length === 0;
    if (select.value !== before) this._changed();
  }

  /** What is set here, as a request has it; null without a picture, or a model that could follow it. Throws Mistake. */
  read() {
    if (!this.input.blob || find("control-fold").hidden) return null;
    const number = (id, field, missing) => readNumber(id, field) ?? missing;
    const start = number("control-start", "control_guidance_start", 0);
    const end = number("control-end", "control_guidance_end", 1);
    if (!find("control-type").value) throw new Mistake("controlnet_type", "must be chosen");
    return {
      type: find("control-type").value,
      scale: number("control-scale", "controlnet_conditioning_scale", 1),
      start,
      end,
      preprocess: find("control-preprocess").checked,
    };
  }

  write(control, file) {
    if (control) {
      this._wanted = control.type;
      this.showTypes();
      // Left open where no model has this type any more: another one would be another picture.
      find("control-type").value = control.type;
      find("control-preprocess").checked = control.preprocess;
      setInput("control-scale", control.scale);
      find("control-start").value = control.start;
      find("control-end").value = control.end;
    }
    this.input.set(control ? file : null);
    find("control-fold").open ||= control !== null;
  }

  _changed() {
    const used = this.input.blob !== null;
    find("control-options").hidden = find("control-tag").hidden = !used;
    this._showHint();
  }

  async _showHint() {
    this._asking?.abort();
    find("control_image-fault").textContent = "";
    const { blob } = this.input;
    if (!blob || !find("control-preprocess").checked) {
      this._show(blob, "The hint is the picture itself");
      return;
    }
    this._show(null);
    if (!find("control-type").value) return;
    const controller = (this._asking = new AbortController());
    const form = new FormData();
    form.append("control_image", blob, "control.png");
    form.append("controlnet_type", find("control-type").value);
    try {
      const answer = await ask(`${BASE}/hint`, { method: "POST", body: form, signal: controller.signal });
      this._show(await answer.blob(), "The hint, made from this picture");
    } catch (error) {
      if (error.name === "AbortError") return;
      const text = error instanceof Refusal ? error.message : "The server does not answer.";
      find("control_image-fault").textContent = `No hint could be made. ${text}`;
    }
  }

  _show(blob, text = "") {
    showFile(find("control-hint-picture"), blob);
    find("control-hint").hidden = !blob;
    find("control-hint-text").textContent = text;
  }
}
