// Two pictures, one over the other, and what differs in how they were made.

import { closeByButton, fill, find, freeFiles, make, showFile } from "./dom.js";
import { kindOf } from "./request.js";

let marked = null;

const labelOf = (run, picture) => `${run.request.fields.prompt || "No prompt"}, seed ${picture.seed}`;

/** What the button for it says: there must be a first picture before there is a second. */
export const compareLabel = (_, picture) => (marked && marked.picture !== picture ? "Compare with marked" : "Mark to compare");

/** Marks a picture; the next other one is compared with it. Returns whether both are there. */
export function compare(run, picture) {
  if (!marked || marked.picture === picture) {
    marked = { run, picture };
    return false;
  }
  show(marked, { run, picture });
  marked = null;
  return true;
}

/** Forgets the picture that is marked. */
export function unmark() {
  marked = null;
}

function show(left, right) {
  for (const [id, { run, picture }] of [["wipe-left", left], ["wipe-right", right]]) {
    const image = find(id);
    showFile(image, picture.blob);
    image.alt = labelOf(run, picture);
  }
  find("wipe").style.aspectRatio = `${left.picture.width} / ${left.picture.height}`;
  find("wipe-at").value = 50;
  move();
  const [a, b] = [valuesOf(left), valuesOf(right)];
  const names = Object.keys({ ...a, ...b }).filter((name) => a[name] !== b[name]);
  const head = make("thead", {}, rowOf("th", "Differs", "Left", "Right"));
  const rows = names.map((name) => rowOf("td", name.replaceAll("_", " "), a[name] ?? "", b[name] ?? ""));
  if (!rows.length) rows.push(rowOf("td", "nothing", "", ""));
  fill(find("differences"), head, make("tbody", {}, ...rows));
  find("compare-window").showModal();
}

const rowOf = (cell, ...texts) => make("tr", {}, ...texts.map((text) => make(cell, {}, String(text))));

const textOf = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

function valuesOf({ run, picture }) {
  const { num_images: _, model_name: __, ...used } = run.answer?.parameters ?? run.request.fields;
  const values = { ...used, model: run.answer?.model, seed: picture.seed, kind: kindOf(run.request) || "from the prompt" };
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, textOf(value ?? "")]));
}

function move() {
  find("wipe").style.setProperty("--at", `${find("wipe-at").value}%`);
}

export function connectCompare() {
  closeByButton(find("compare-window"));
  find("compare-window").addEventListener("close", () => freeFiles(find("wipe")));
  find("wipe-at").addEventListener("input", move);
}
