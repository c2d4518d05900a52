// The window that shows a picture's code, and hands out the files that the code reads.

import { getKey } from "./api.js";
import { announce, closeByButton, copy, download, fill, find, make } from "./dom.js";
import { curl, httpx, openai } from "./snippets.js";

const LANGUAGES = [
  ["curl", curl, ""],
  ["Python", httpx, "It needs httpx: pip install httpx."],
  ["OpenAI", openai, "It needs OpenAI's package: pip install openai."],
];

let shown = null;

/** The request that makes just this picture again. */
export function requestOfPicture({ request, answer }, picture) {
  const fields = { ...request.fields, seed: picture.seed };
  delete fields.num_images;
  delete fields.cache;
  if (!fields.ad_format) Object.assign(fields, { width: picture.width, height: picture.height });
  if (answer) fields.model_name = answer.model;
  // What the server has filled in where nothing was chosen: a default may be another one tomorrow.
  for (const name of ["sampler", "num_inference_steps", "guidance_scale", "strength"]) {
    const used = answer?.parameters?.[name];
    if (used !== undefined && used !== null) fields[name] ??= used;
  }
  return { ...request, fields };
}

export function showCode(run, picture) {
  shown = requestOfPicture(run, picture);
  const needsKey = getKey() !== "";
  const choose = (chosen) => {
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(index === chosen));
      tab.tabIndex = index === chosen ? 0 : -1;
    });
    const [name, write, needs] = LANGUAGES[chosen];
    find("code-text").textContent = write(shown, { origin: location.origin, needsKey });
    find("code-text").setAttribute("aria-labelledby", `code-tab-${chosen}`);
    showFiles(name === "OpenAI", needs);
  };
  const turn = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (tabs.indexOf(event.currentTarget) + step + tabs.length) % tabs.length;
    choose(next);
    tabs[next].focus();
  };
  const tabs = LANGUAGES.map(([name], index) =>
    make("button", { type: "button", role: "tab", id: `code-tab-${index}`, click: () => choose(index), keydown: turn }, name));
  fill(find("code-tabs"), ...tabs);
  choose(0);
  find("code-window").showModal();
}

function showFiles(forOpenai, needs) {
  const { init, mask, control, reference } = shown.files;
  const files = [];
  if (init) files.push(["input.png", async () => init]);
  if (init && mask) files.push(forOpenai ? ["mask-openai.png", () => holesOf(mask)] : ["mask.png", async () => mask]);
  if (control) files.push(["control.png", async () => control]);
  if (reference && (init || !forOpenai)) files.push(["reference.png", async () => reference]);
  find("code-note").textContent = [needs, files.length ? "It reads these files, which you can save here:" : ""].join(" ").trim();
  fill(find("code-files"), ...files.map(([name, read]) =>
    make("button", { type: "button", class: "secondary", click: async () => download(await read(), name) }, name)));
}

/** The mask as OpenAI's clients send it: transparent where this one is white. */
async function holesOf(mask) {
  const picture = await createImageBitmap(mask);
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = 255 - pixels.data[i];
  context.putImageData(pixels, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

export function connectCode() {
  closeByButton(find("code-window"));
  find("code-copy").addEventListener("click", async (event) => {
    const button = event.currentTarget;
    const told = (await copy(find("code-text").textContent)) ? "Copied" : "Select and copy it by hand";
    announce(told);
    button.textContent = told;
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
