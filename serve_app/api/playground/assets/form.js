// The form: what can be chosen in it, what has been chosen, and where it is wrong.

import { fill, find, make } from "./dom.js";
import { modelOf, offered } from "./server.js";

const NUMBERS = ["num_images", "num_inference_steps", "guidance_scale"];
const TEXTS = ["negative_prompt", "style_preset", "model_name", "sampler"];
const RATIOS = [["Square", 1, 1], ["Portrait 4:5", 4, 5], ["Tall 9:16", 9, 16], ["Landscape 4:3", 4, 3], ["Wide 16:9", 16, 9]];
const LARGEST_DOUBLED = 384;
const AD = "ad format ";

/** What is wrong in the form itself, where a browser knows more than the server is told. */
export class Mistake extends Error {
  constructor(field, message) {
    super(`${field} ${message}`);
    this.faults = [{ field, message }];
  }
}

/** Puts what the server offers into the lists, and keeps what was chosen. */
export function showOffered() {
  const models = offered.models.map(({ name }) => [name, name]);
  list("model_name", [["", "Automatic"], ...models]);
  const samplers = offered.samplers.map(({ name, label }) => [name, label]);
  list("sampler", [["", "The model's own"], ...samplers]);
  list("style_preset", [["", "None"], ...offered.styles.map(({ name }) => [name, name])]);
  showShapes();
}

function list(id, options) {
  const select = find(id);
  const chosen = select.value;
  fill(select, ...options.map(([value, text]) => make("option", { value }, text)));
  select.value = options.some(([value]) => value === chosen) ? chosen : "";
}

/** The sizes that suit the chosen model: its own area in several shapes, and twice as large where it is small. */
function showShapes() {
  const model = modelOf(find("model_name").value);
  if (!model) return;
  const options = RATIOS.map((ratio) => shapeOf(ratio, model.native_size));
  const doubled = 2 * model.native_size;
  if (model.native_size <= LARGEST_DOUBLED && doubled ** 2 <= model.limits.max_pixels) {
    options.push(shapeOf(["Large square", 1, 1], doubled));
  }
  const formats = offered.ad_formats.map(({ name, width, height }) => [
    AD + name,
    `${name.replaceAll("_", " ")}, ${width} × ${height}`,
  ]);
  list("shape", [["", `Automatic, ${model.native_size} px`], ...options, ["custom", "Other"], ...formats]);
  showCustomSize();
}

function shapeOf([name, across, down], side) {
  const step = (length) => 8 * Math.round(length / 8);
  const width = step(side * Math.sqrt(across / down));
  const height = step(side * Math.sqrt(down / across));
  return [`${width}x${height}`, `${name}, ${width} × ${height}`];
}

function showCustomSize() {
  find("custom-size").hidden = find("shape").value !== "custom";
}

/** The fields as the server takes them. Throws Mistake. `hasInput` and the others say which files come along. */
export function readFields({ hasInput, hasMask, hasControl, hasReference }) {
  const fields = { prompt: find("prompt").value };
  for (const name of TEXTS) if (find(name).value) fields[name] = find(name).value;
  for (const name of NUMBERS) setNumber(fields, name);
  const shape = find("shape").value;
  if (shape === "custom") for (const name of ["width", "height"]) setNumber(fields, name);
  else if (shape.startsWith(AD)) fields.ad_format = shape.slice(AD.length);
  else if (shape) [fields.width, fields.height] = shape.split("x").map(Number);
  if (find("seed").value.trim()) fields.seed = readSeed();
  const bringsPictures = hasInput || hasControl || hasReference;
  if (find("similar").checked && !("seed" in fields) && !bringsPictures) fields.cache = "similar";
  if (hasInput) setNumber(fields, "strength");
  if (hasMask && readNumber("mask_feather") > 0) setNumber(fields, "mask_feather");
  return fields;
}

function setNumber(fields, name) {
  const value = readNumber(name);
  if (value !== null) fields[name] = value;
}

/** The number in an input; null for an empty one. Throws Mistake. */
export function readNumber(id, field = id) {
  const input = find(id);
  if (input.validity.badInput) throw new Mistake(field, "must be a number");
  return input.value === "" ? null : Number(input.value);
}

function readSeed() {
  const text = find("seed").value.trim();
  if (!/^-?\d+$/.test(text)) throw new Mistake("seed", "must be a whole number, or empty for a random one");
  if (!Number.isSafeInteger(Number(text))) throw new Mistake("seed", `must be at most ${Number.MAX_SAFE_INTEGER} here`);
  return Number(text);
}

/** Puts fields into the form, and takes out what they do not have. */
export function writeFields(fields) {
  find("prompt").value = fields.prompt ?? "";
  for (const name of TEXTS) find(name).value = fields[name] ?? "";
  for (const name of NUMBERS) setInput(name, fields[name] ?? find(name).defaultValue);
  showShapes();
  const shape = find("shape");
  shape.value = fields.ad_format ? AD + fields.ad_format : fields.width ? `${fields.width}x${fields.height}` : "";
  if (fields.width && shape.selectedIndex < 0) shape.value = "custom";
  find("width").value = fields.width ?? "";
  find("height").value = fields.height ?? "";
  showCustomSize();
  find("seed").value = fields.seed ?? "";
  find("similar").checked = fields.cache === "similar";
  setInput("strength", fields.strength ?? "");
  setInput("mask_feather", fields.mask_feather ?? 0);
  find("negative-fold").open ||= Boolean(fields.negative_prompt);
  dispatchEvent(new Event("formwritten"));
  showSummary();
}

/** Sets a number, and the slider beside it: for an empty one to `shown`, if that is known. */
export function setInput(id, value, shown = value) {
  find(id).value = value;
  const slider = document.querySelector(`[data-for="${id}"]`);
  if (slider && shown !== "") slider.value = shown;
}

/** Connects sliders with their numbers, and lists with what depends on them. */
export function connectForm() {
  for (const slider of document.querySelectorAll("[data-for]")) {
    const input = find(slider.dataset.for);
    slider.addEventListener("input", () => {
      input.value = slider.value;
      input.dispatchEvent(new Event("input", { bubbles: true }));
    });
    input.addEventListener("input", () => {
      if (input.value !== "") slider.value = input.value;
    });
  }
  find("shape").addEventListener("change", showCustomSize);
  find("model_name").addEventListener("change", showShapes);
  find("seed-random").addEventListener("click", () => {
    find("seed").value = "";
    showSummary();
  });
  find("form").addEventListener("input", showSummary);
  showSummary();
}

function showSummary() {
  const count = Number(find("num_images").value);
  find("make").textContent = count > 1 ? `Make ${count} pictures` : "Make a picture";
  const seed = find("seed").value.trim();
  find("settings-text").textContent = `${find("num_inference_steps").value || 50} steps${seed ? `, seed ${seed}` : ""}`;
}

/** Shows what is wrong: in a summary with a way to each field, and at the fields. */
export function showFaults(title, detail, faults) {
  clearFaults();
  const items = faults.map(({ field, message }) => {
    const place = placeOf(field);
    const label = place?.dataset.label ?? place?.querySelector("label")?.textContent.trim();
    if (!place || !label) return make("li", {}, `${field} ${message}`);
    markField(place, field, message);
    return make("li", {}, make("button", { type: "button", click: () => reveal(place) }, label), ` ${message}`);
  });
  const text = items.length ? make("ul", {}, ...items) : make("p", {}, detail);
  fill(find("fault"), make("strong", {}, title), text);
  find("fault").hidden = false;
  const first = document.querySelector('[aria-invalid="true"]');
  if (first) reveal(first.closest("[data-field]"));
  else find("fault").focus();
}

/** The part of the form that is about a field: the one that is about nothing else, if it is there to be seen. */
function placeOf(field) {
  const places = [...document.querySelectorAll(`[data-field~="${CSS.escape(field)}"]`)];
  return places.find((place) => place.dataset.field === field && !place.closest("[hidden]")) ?? places[0];
}

function markField(place, field, message) {
  const input = find(field) ?? place.querySelector("input:not([aria-hidden]), select, textarea, button");
  input?.setAttribute("aria-invalid", "true");
  const text = find(`${field}-fault`) ?? place.querySelector(".wrong");
  if (text) text.textContent = message;
}

function reveal(place) {
  for (let fold = place.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  place.querySelector('[aria-invalid="true"], input:not([aria-hidden]), select, textarea, button')?.focus();
}

export function clearFaults() {
  find("fault").hidden = true;
  for (const input of document.querySelectorAll('[aria-invalid="true"]')) input.removeAttribute("aria-invalid");
  for (const text of document.querySelectorAll(".wrong")) text.textContent = "";
}
