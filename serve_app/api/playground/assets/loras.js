// LoRAs: which of those that fit the model are used, and how strongly.

import { announce, fill, find, make } from "./dom.js";
import { Mistake } from "./form.js";
import { modelOf, offered } from "./server.js";

const MOST = 8;

export class Loras {
  constructor() {
    // The chosen scales, as they are written, by name. Those that the model cannot take wait for one that can.
    this._scales = new Map();
    find("lora-add").addEventListener("change", (event) => {
      const { value: name } = event.target;
      if (name) this._add(name);
    });
    find("model_name").addEventListener("change", () => this.show());
    addEventListener("formwritten", () => this.show());
  }

  /** Offers the LoRAs that fit the chosen model. */
  show() {
    const fitting = offered.loras.filter((each) => fits(each)).map(({ name }) => name);
    const used = this._used();
    const left = fitting.filter((name) => !used.includes(name));
    find("lora-fold").hidden = fitting.length === 0 && used.length === 0;
    find("lora-tag").hidden = used.length === 0;
    fill(find("lora-rows"), ...used.map((name) => this._rowOf(name)));
    const full = used.length >= MOST;
    const text = full ? `No more than ${MOST}` : left.length ? "Choose" : "All are used";
    fill(find("lora-add"), ...[["", text], ...left.map((name) => [name, name])].map(([value, label]) => make("option", { value }, label)));
    find("lora-add").disabled = full || left.length === 0;
  }

  /** What is set here, as a request has it; null for nothing. Throws Mistake. */
  read() {
    const used = this._used().map((name) => ({ name, scale: Number(this._scales.get(name)) }));
    const wrong = used.find(({ name, scale }) => this._scales.get(name).trim() === "" || Number.isNaN(scale));
    if (wrong) throw new Mistake("loras", `needs a number for ${wrong.name}`);
    return used.length ? used : null;
  }

  write(loras) {
    this._scales = new Map((loras ?? []).map(({ name, scale }) => [name, String(scale ?? 1)]));
    this.show();
    find("lora-fold").open ||= this._used().length > 0;
  }

  /** The chosen ones that the model can take. What no list has any more is kept: the server says so. */
  _used() {
    const known = new Map(offered.loras.map((each) => [each.name, each]));
    return [...this._scales.keys()].filter((name) => !known.has(name) || fits(known.get(name)));
  }

  _add(name) {
    this._scales.set(name, "1");
    this.show();
    announce(`${name} is used`);
    find("lora-rows").lastElementChild.querySelector("input").focus();
  }

  _remove(name) {
    this._scales.delete(name);
    this.show();
    announce(`${name} is not used`);
    find(find("lora-add").disabled ? "lora-rows" : "lora-add").focus();
  }

  _rowOf(name) {
    const scale = make("input", {
      type: "number",
      min: -4,
      max: 4,
      step: 0.05,
      "aria-label": `Scale of ${name}`,
      input: (event) => this._scales.set(name, event.target.validity.badInput ? "" : event.target.value),
    });
    scale.value = this._scales.get(name);
    const remove = make("button", { type: "button", class: "quiet", "aria-label": `Remove ${name}`, click: () => this._remove(name) }, "Remove");
    return make("li", {}, make("span", { class: "lora-name", title: name }, name), scale, remove);
  }
}

/** Whether the model that is chosen can take a LoRA, as far as the server knows. */
function fits({ models, problem }) {
  return problem === null && models.includes(modelOf(find("model_name").value)?.name);
}
