// What is wanted, as one plain object that the browser can keep, and the HTTP request that asks for it.
//
//   {fields: {prompt, seed, ...}, control: {type, scale, start, end, preprocess} | null,
//    files: {init, mask, control, reference}}    each file is a Blob or null; what was kept earlier has no reference

import { BASE } from "./api.js";

export const PREVIEWS = 4;

/** The endpoint that takes it. */
export function pathOf({ control, files }) {
  if (control && files.control) return `${BASE}/controlnet`;
  if (files.init && files.mask) return `${BASE}/inpaint`;
  return files.init ? `${BASE}/image-to-image` : `${BASE}/text-to-image`;
}

/** The parts of its form in order, as `[name, value, file name]`; null where it is JSON. */
export function partsOf(request) {
  const { fields, control, files } = request;
  const path = pathOf(request);
  if (path.endsWith("text-to-image") && !files.reference) return null;
  const isList = ([, value]) => typeof value === "object";
  const entries = Object.entries(fields);
  const parts = entries.filter((entry) => !isList(entry)).map(([name, value]) => [name, String(value)]);
  // Forms have texts; what is more than one comes as JSON.
  const lists = entries.filter(isList);
  if (lists.length) parts.push(["params", JSON.stringify(Object.fromEntries(lists))]);
  if (path.endsWith("controlnet")) {
    parts.push(["control_image", files.control, "control.png"]);
    parts.push(["controlnet_type", control.type], ["preprocess", String(control.preprocess)]);
    parts.push(["controlnet_conditioning_scale", String(control.scale)]);
    parts.push(["control_guidance_start", String(control.start)], ["control_guidance_end", String(control.end)]);
  }
  if (files.init) parts.push([path.endsWith("inpaint") ? "image" : "init_image", files.init, "input.png"]);
  if (files.init && files.mask) parts.push(["mask", files.mask, "mask.png"]);
  if (files.reference) parts.push(["reference_images", files.reference, "reference.png"]);
  return parts;
}

/** The options of `fetch` for it, without a method and an Accept header. */
export function bodyOf(request) {
  const parts = partsOf(request);
  if (parts === null) {
    return { headers: { "Content-Type": "application/json" }, body: JSON.stringify(request.fields) };
  }
  const form = new FormData();
  for (const [name, value, file] of parts) file ? form.append(name, value, file) : form.append(name, value);
  return { headers: {}, body: form };
}

/** Its kind in a word or two. */
export function kindOf({ control, files }) {
  const kinds = [files.init && files.mask ? "inpainted" : files.init ? "from a picture" : null];
  if (control && files.control) kinds.push(control.type);
  if (files.reference) kinds.push("after a picture");
  return kinds.filter(Boolean).join(", ");
}
