// The contact sheet: all pictures that this browser has kept, the newest first.

import { fill, find, make } from "./dom.js";
import * as store from "./store.js";

let runs = [];
let open = () => {};

export const isEmpty = () => runs.length === 0;
export const latest = () => runs[0];

/** Shows what was kept. `opened` is told of the run and the place of the picture that is chosen. */
export async function loadSheet(opened) {
  open = opened;
  const kept = await store.load();
  runs = kept.runs;
  fill(find("prints"), ...runs.flatMap(printsOf));
  if (!kept.kept) find("sheet-note").textContent = "This browser keeps nothing: the sheet ends with this page.";
  find("sheet-clear").addEventListener("click", clearSheet);
  show();
}

/** Keeps a run, and puts its pictures first once they are kept: what is shown is still there when the page is loaded again. */
export async function addRun(run) {
  runs.unshift(run);
  let dropped = [];
  let full = false;
  try {
    dropped = await store.save(run);
  } catch {
    full = true;
  }
  find("prints").prepend(...printsOf(run));
  show();
  for (const id of dropped) drop(id);
  if (full) {
    find("sheet-note").hidden = false;
    find("sheet-note").textContent = "There is no room left in this browser: the newest pictures are not kept.";
  }
}

/** Takes one picture out, and its run with the last one. */
export async function removePicture(run, picture) {
  const place = run.pictures.indexOf(picture);
  if (place < 0) return;
  run.pictures.splice(place, 1);
  if (run.pictures.length) {
    await store.save(run);
    find("prints").querySelectorAll(`[data-run="${run.id}"]`)[place].remove();
  } else {
    await store.remove(run.id);
    drop(run.id);
  }
}

function drop(id) {
  runs = runs.filter((run) => run.id !== id);
  for (const print of find("prints").querySelectorAll(`[data-run="${id}"]`)) {
    URL.revokeObjectURL(print.querySelector("img").src);
    print.remove();
  }
  show();
}

async function clearSheet(event) {
  const button = event.currentTarget;
  if (button.dataset.asked !== "true") {
    button.dataset.asked = "true";
    button.textContent = "Really clear all?";
    setTimeout(() => {
      button.dataset.asked = "false";
      button.textContent = "Clear";
    }, 4000);
    return;
  }
  button.dataset.asked = "false";
  button.textContent = "Clear";
  await store.clear();
  for (const { id } of [...runs]) drop(id);
  find("sheet-title").focus();
}

function printsOf(run) {
  return run.pictures.map((picture) => {
    const text = `${run.request.fields.prompt || "No prompt"}, seed ${picture.seed}`;
    const image = make("img", { alt: text, loading: "lazy", src: URL.createObjectURL(picture.blob) });
    const button = make("button", { type: "button", class: "print", title: text, click: () => open(run, run.pictures.indexOf(picture)) }, image);
    return make("li", { "data-run": run.id }, button);
  });
}

function show() {
  find("sheet-clear").hidden = runs.length === 0;
  find("sheet-note").hidden = runs.length > 0;
}
