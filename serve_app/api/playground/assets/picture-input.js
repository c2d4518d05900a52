// A place for one picture: dropped, pasted, or chosen as a file.

import { fill, find, make, showFile } from "./dom.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];

export class PictureInput {
  /** Builds itself in the element `id`. `changed` is told of each new picture, and of null. */
  constructor(id, label, changed) {
    this.blob = null;
    this._changed = changed;
    this._place = find(id);
    this._place.dataset.label = label;
    this._picture = make("img", { alt: "", hidden: true });
    this._text = make("span", {}, "Drop a picture, paste one, or choose a file");
    this._file = make("input", { type: "file", accept: TYPES.join(","), class: "unseen", "aria-label": label });
    this._remove = make("button", { type: "button", class: "quiet", hidden: true, click: () => this.set(null) }, "Remove");
    this._wrong = make("p", { class: "wrong", role: "alert" });
    this._drop = make("label", { class: "drop" }, this._file, this._picture, this._text);
    fill(this._place, this._drop, this._remove, this._wrong);
    this._file.addEventListener("change", () => this._take(this._file.files));
    this._drop.addEventListener("dragover", (event) => {
      event.preventDefault();
      this._drop.classList.add("over");
    });
    this._drop.addEventListener("dragleave", () => this._drop.classList.remove("over"));
    this._drop.addEventListener("drop", (event) => {
      event.preventDefault();
      this._drop.classList.remove("over");
      this._take(event.dataTransfer.files);
    });
  }

  /** Takes the picture among `files`, if there is one. */
  _take(files) {
    const file = [...files].find(({ type }) => TYPES.includes(type));
    if (file) this.set(file);
    else if (files.length) this._wrong.textContent = "Only PNG, JPEG and WebP pictures can be used.";
    this._file.value = "";
  }

  /** Shows `blob`, or that there is none. */
  set(blob) {
    this.blob = blob;
    this._wrong.textContent = "";
    this._picture.hidden = this._remove.hidden = blob === null;
    showFile(this._picture, blob);
    this._text.textContent = blob ? "Replace it" : "Drop a picture, paste one, or choose a file";
    this._changed(blob);
  }
}

/** Gives pasted pictures to the place that `choose` names. */
export function connectPaste(choose) {
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.some(({ type }) => TYPES.includes(type))) return;
    event.preventDefault();
    choose()._take(files);
  });
}
