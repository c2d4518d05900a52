// The contact sheet: all pictures that this browser has kept, the newest first.

import { announce, fill, find, freeFiles, make, pictureOf } from "./dom.js";
import * as store from "./store.js";

const KEPT = "Your pictures are kept here, in this browser.";
const NOTHING_KEPT = "This browser keeps nothing: the sheet ends with this page.";
const NO_ROOM = "There is no room left in this browser: the newest pictures are not kept.";
const NOT_SAVED = "This browser could not save the newest pictures: they end with this page.";
const NOT_DELETED = "This browser could not delete that: it will be here again.";

let runs = [];
let open = () => {};
let tellCleared = () => {};
let keeps = true;

// The runs that are on the sheet, but not kept, and why; and whether the last thing to be deleted is still there.
const unkept = new Set();
let reason = "";
let undeleted = false;

export const isEmpty = () => runs.length === 0;
export const latest = () => runs[0];
export const has = (run) => runs.includes(run);

/**
 * Shows what was kept. `opened` is told of the run and the place of the picture that is chosen, and `cleared` is called
 * when nothing is left because somebody wanted it.
 */
export async function loadSheet(opened, cleared) {
  [open, tellCleared] = [opened, cleared];
  const kept = await store.load();
  runs = kept.runs;
  showPrints();
  keeps = kept.kept;
  find("sheet-clear").addEventListener("click", clearSheet);
  show();
}

/** Keeps a run, and puts its pictures first once they are kept: what is shown is still there when the page is loaded again. */
export async function addRun(run) {
  runs.unshift(run);
  let [dropped, fault] = [[], null];
  try {
    dropped = await store.save(run);
  } catch (error) {
    fault = error;
  }
  // Everything may have been cleared meanwhile.
  if (!has(run)) return;
  if (fault) {
    unkept.add(run.id);
    reason = fault.name === "QuotaExceededError" ? NO_ROOM : NOT_SAVED;
  }
  find("prints").prepend(...printsOf(run));
  for (const id of dropped) drop(id);
  show();
}

/**
 * Takes one picture out, and its run with the last one. Returns whether it could be deleted, and tells if not. A run that
 * has left the sheet is not saved again.
 */
export async function removePicture(run, picture) {
  const place = run.pictures.indexOf(picture);
  if (place < 0) return true;
  const pictures = run.pictures.filter((each) => each !== picture);
  if (has(run) && !unkept.has(run.id)) {
    const deleted = await isDeleted(pictures.length ? store.save({ ...run, pictures }) : store.remove(run.id));
    if (!deleted) return false;
  }
  run.pictures = pictures;
  if (!has(run)) return true;
  if (pictures.length) takeOut(find("prints").querySelectorAll(`[data-run="${run.id}"]`)[place]);
  else drop(run.id);
  show();
  return true;
}

/** Whether the database has done the `work` of deleting; tells if not. */
async function isDeleted(work) {
  try {
    await work;
    undeleted = false;
  } catch {
    undeleted = true;
    announce(NOT_DELETED);
    show();
  }
  return !undeleted;
}

function drop(id) {
  runs = runs.filter((run) => run.id !== id);
  unkept.delete(id);
  for (const print of find("prints").querySelectorAll(`[data-run="${id}"]`)) takeOut(print);
}

function takeOut(print) {
  freeFiles(print);
  print.remove();
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
  // At once, so that nothing of what is being cleared is saved again.
  const cleared = runs;
  runs = [];
  if (await isDeleted(store.clear())) for (const { id } of cleared) unkept.delete(id);
  else runs = [...runs, ...cleared];
  showPrints();
  show();
  if (undeleted) return;
  tellCleared();
  find("sheet-title").focus();
}

function showPrints() {
  freeFiles(find("prints"));
  fill(find("prints"), ...runs.flatMap(printsOf));
}

function printsOf(run) {
  return run.pictures.map((picture) => {
    const text = `${run.request.fields.prompt || "No prompt"}, seed ${picture.seed}`;
    const image = pictureOf(picture.blob, text, { loading: "lazy" });
    const button = make("button", { type: "button", class: "print", title: text, click: () => open(run, run.pictures.indexOf(picture)) }, image);
    return make("li", { "data-run": run.id }, button);
  });
}

function show() {
  const note = undeleted ? NOT_DELETED : unkept.size ? reason : keeps ? KEPT : NOTHING_KEPT;
  find("sheet-clear").hidden = runs.length === 0;
  find("sheet-note").hidden = runs.length > 0 && note === KEPT;
  find("sheet-note").textContent = note;
}
