// Painting a mask: strokes and areas over the picture, kept as a list, so that each can be undone.

import { announce, closeByButton, find, make } from "./dom.js";

const LONGEST = 1024;
const AREAS = {
  Centre: [0.25, 0.25, 0.5, 0.5],
  Everything: [0, 0, 1, 1],
  Top: [0, 0, 1, 0.5],
  Bottom: [0, 0.5, 1, 0.5],
  "Left half": [0, 0, 0.5, 1],
  "Right half": [0.5, 0, 0.5, 1],
};

/** What a mask has painted: transparent where it is black. */
async function paintedOf(mask) {
  const picture = await createImageBitmap(mask);
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i];
  context.putImageData(pixels, 0, 0);
  return canvas;
}

export class MaskPainter {
  /** `done` is told of each mask, a PNG, white where the picture is made anew; and of null. */
  constructor(done) {
    this._done = done;
    this._marks = [];
    this._stroke = null;
    this._erases = false;
    this._canvas = find("mask-canvas");
    this._dialog = find("mask-window");
    closeByButton(this._dialog);
    for (const name of Object.keys(AREAS)) find("mask-area").append(make("option", { value: name }, name));
    find("mask-brush").addEventListener("click", () => this._choose(false));
    find("mask-eraser").addEventListener("click", () => this._choose(true));
    find("mask-undo").addEventListener("click", () => this._undo());
    find("mask-clear").addEventListener("click", () => this._reset());
    find("mask-area-apply").addEventListener("click", () => this._addArea(find("mask-area").value));
    find("mask-done").addEventListener("click", () => this._finish());
    find("mask-remove").addEventListener("click", () => {
      this._reset();
      this._done(null);
      this._dialog.close();
    });
    this._canvas.addEventListener("pointerdown", (event) => this._begin(event));
    this._canvas.addEventListener("pointermove", (event) => this._extend(event));
    this._canvas.addEventListener("lostpointercapture", () => (this._stroke = null));
    this._dialog.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key === "z") this._undo();
    });
  }

  /** Takes another picture, and a mask that was painted on it before. Returns whether it is still the last that came. */
  async usePicture(blob, mask = null) {
    const taken = (this._taken = {});
    this._picture = null;
    this._marks = [];
    // One that came before may be read after it.
    const [picture, painted] = await Promise.all([blob && createImageBitmap(blob), mask && paintedOf(mask)]);
    if (this._taken !== taken) return false;
    this._picture = picture;
    if (painted) this._marks = [{ erases: false, painted }];
    return true;
  }

  /** Opens the window, once the picture has been read. */
  open() {
    if (!this._picture) return;
    const { width, height } = this._picture;
    const scale = Math.min(1, LONGEST / Math.max(width, height));
    this._canvas.width = Math.round(width * scale);
    this._canvas.height = Math.round(height * scale);
    this._dialog.showModal();
    this._draw();
  }

  _choose(erases) {
    this._erases = erases;
    find("mask-brush").setAttribute("aria-pressed", String(!erases));
    find("mask-eraser").setAttribute("aria-pressed", String(erases));
  }

  _pointOf(event) {
    const box = this._canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this._canvas.width,
      ((event.clientY - box.top) / box.height) * this._canvas.height,
    ];
  }

  _begin(event) {
    if (!event.isPrimary || event.button !== 0) return;
    this._canvas.setPointerCapture(event.pointerId);
    const width = (Number(find("mask-size").value) / 100) * Math.max(this._canvas.width, this._canvas.height);
    this._stroke = { erases: this._erases, width, points: [this._pointOf(event)] };
    this._marks.push(this._stroke);
    this._draw();
  }

  _extend(event) {
    if (!this._stroke || !this._canvas.hasPointerCapture(event.pointerId)) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const each of passed.length ? passed : [event]) this._stroke.points.push(this._pointOf(each));
    this._draw();
  }

  _addArea(name) {
    this._marks.push({ erases: this._erases, area: AREAS[name] });
    announce(`${name} ${this._erases ? "taken out" : "painted"}`);
    this._draw();
  }

  _undo() {
    if (this._marks.pop() === this._stroke) this._stroke = null;
    this._draw();
  }

  _reset() {
    this._marks = [];
    this._stroke = null;
    this._draw();
  }

  /** What is painted, in one colour on nothing. */
  _layer(colour) {
    const layer = new OffscreenCanvas(this._canvas.width, this._canvas.height);
    const context = layer.getContext("2d");
    context.lineCap = context.lineJoin = "round";
    context.fillStyle = colour;
    for (const { erases, width, points, area, painted } of this._marks) {
      context.globalCompositeOperation = erases ? "destination-out" : "source-over";
      if (painted) {
        context.drawImage(painted, 0, 0, layer.width, layer.height);
        continue;
      }
      if (area) {
        const [x, y, across, down] = area;
        context.fillRect(x * layer.width, y * layer.height, across * layer.width, down * layer.height);
        continue;
      }
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(...points[0]);
      // A line of no length would not be drawn, and a click is to make a dot.
      for (const [x, y] of points) context.lineTo(x + 0.01, y);
      context.stroke();
    }
    context.globalCompositeOperation = "source-in";
    context.fillRect(0, 0, layer.width, layer.height);
    return layer;
  }

  _draw() {
    find("mask-undo").disabled = find("mask-clear").disabled = this._marks.length === 0;
    if (!this._dialog.open) return;
    const context = this._canvas.getContext("2d");
    context.drawImage(this._picture, 0, 0, this._canvas.width, this._canvas.height);
    // Drawn opaque and laid over once: strokes that cross do not darken.
    context.globalAlpha = 0.62;
    context.drawImage(this._layer("#e5402b"), 0, 0);
    context.globalAlpha = 1;
  }

  async _finish() {
    const mask = this._marks.length ? await this._export() : null;
    this._done(mask);
    this._dialog.close();
  }

  async _export() {
    const whole = new OffscreenCanvas(this._picture.width, this._picture.height);
    const context = whole.getContext("2d");
    context.fillRect(0, 0, whole.width, whole.height);
    context.drawImage(this._layer("#fff"), 0, 0, whole.width, whole.height);
    return whole.convertToBlob({ type: "image/png" });
  }
}
