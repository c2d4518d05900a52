// The stage: the pictures that are being made, or were made, and what can be done with them.

import { announce, fill, find, freeFiles, make, pictureOf, showFile } from "./dom.js";
import { drawingOf } from "./examples.js";
import { kindOf } from "./request.js";

const stage = () => find("stage");

/** Puts `children` on the stage, and frees the pictures that were there. */
function put(...children) {
  freeFiles(stage());
  fill(stage(), ...children);
}

/** Whether nothing is there but an invitation. */
export const isFree = () => stage().childElementCount === 0 || stage().querySelector(".welcome") !== null;

/** Whether a finished run is there. */
export const showsRun = () => stage().querySelector(".facts") !== null;

/** Invites to a first picture. `choose` is told which example. */
export function showWelcome(examples, choose) {
  const cards = examples.map((example) =>
    make("li", {}, make("button", { type: "button", class: "example", click: () => choose(example) },
      drawingOf(example), make("span", {}, example[0]), extrasOf(example[4]))),
  );
  put(
    make("div", { class: "welcome" },
      make("h2", {}, "Make your first picture"),
      make("p", { class: "lead" }, "Choose one of these, or write a prompt of your own."),
      make("ul", { class: "examples" }, ...cards)),
  );
}

function extrasOf({ num_images: count, style_preset: style }) {
  const words = [style, count && `${count} seeds`].filter(Boolean);
  return words.length ? make("small", {}, words.join(", ")) : null;
}

/**
 * Shows empty frames, and returns the view that fills them while the pictures are made. A count that the server will
 * refuse has as many frames as are allowed.
 */
export function showMaking(request, { width, height }) {
  const { min, max } = find("num_images");
  const count = Math.min(Math.max(request.fields.num_images ?? 1, Number(min)), Number(max));
  const frames = Array.from({ length: count }, (_, index) => frameOf(index, width, height));
  const bar = make("progress", { max: 1, "aria-label": "Progress" });
  const text = make("p", { class: "progress-text" }, "Sending");
  put(gridOf(frames), make("div", { class: "progress" }, bar, text), captionOf(request.fields.prompt));
  let begun = false;
  return {
    progress({ step, steps, position = 0, seconds_to_start: toStart, seconds_left: left }) {
      if (step === 0) {
        bar.removeAttribute("value");
        const wait = position > 0 ? `${position} before this, starts in ${seconds(toStart)}` : "Starting";
        text.textContent = wait;
        if (position > 0) announce(wait);
        return;
      }
      if (!begun) announce("Making the picture");
      begun = true;
      bar.max = steps;
      bar.value = step;
      text.textContent = `Step ${step} of ${steps}${left > 0.5 ? `, ${seconds(left)} left` : ""}`;
    },
    preview: (index, blob) => setPicture(frames[index], blob, "preview"),
    picture: ({ index, blob }) => setPicture(frames[index], blob, "done"),
    failed({ index, status, message }) {
      frames[index].dataset.state = status;
      const words = status === "filtered" ? `Kept back: ${message}` : `This one failed: ${message}`;
      frames[index].append(make("p", { class: "frame-fault" }, words));
    },
  };
}

const seconds = (number) => (number === undefined ? "a while" : `about ${Math.max(1, Math.round(number))} s`);

function frameOf(index, width, height) {
  const picture = make("img", { alt: "", hidden: true });
  const frame = make("div", { class: "frame", "data-state": "waiting", "data-index": index }, picture);
  setShape(frame, width, height);
  return frame;
}

function setShape(frame, width, height) {
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.dataset.width = width;
}

function gridOf(frames) {
  const grid = make("div", { class: "pictures" }, ...frames);
  const columns = Math.ceil(Math.sqrt(frames.length));
  grid.style.setProperty("--columns", columns);
  grid.style.setProperty("--rows", Math.ceil(frames.length / columns));
  grid.style.setProperty("--ratio", frames[0].style.aspectRatio);
  grid.style.setProperty("--natural", `${frames[0].dataset.width}px`);
  grid.dataset.count = frames.length;
  return grid;
}

function setPicture(frame, blob, state) {
  // Something else may have been put on the stage meanwhile.
  if (!frame.isConnected) return;
  const picture = frame.querySelector("img");
  showFile(picture, blob);
  picture.hidden = false;
  frame.dataset.state = state;
}

const captionOf = (prompt) => make("p", { class: "caption" }, prompt || "No prompt");

/** Says why nothing came, and offers to try again. */
export function showStop(title, detail, again) {
  const button = again && make("button", { type: "button", class: "secondary", click: again }, "Try again");
  put(make("div", { class: "stopped" }, make("h2", {}, title), make("p", {}, detail), button));
}

/** Shows a finished run. `actions` are `[label, action(run, picture), isFirst]`. */
export function showRun(run, actions, chosen = 0) {
  const { prompt } = run.request.fields;
  const tools = make("div", { class: "tools", role: "group", "aria-label": "This picture" });
  const facts = make("dl", { class: "facts" });
  const frames = run.pictures.map((picture, place) => {
    const button = make("button", { type: "button", class: "frame", "data-state": "done", click: () => select(place) },
      pictureOf(picture.blob, `${prompt || "Picture"}, seed ${picture.seed}`));
    setShape(button, picture.width, picture.height);
    return button;
  });
  const select = (place) => {
    const picture = run.pictures[place];
    frames.forEach((frame, index) => frame.setAttribute("aria-pressed", String(index === place)));
    fill(tools, ...actions.map(([label, action, isFirst]) =>
      make("button", { type: "button", class: isFirst ? "secondary strong" : "secondary", click: () => action(run, picture) },
        typeof label === "function" ? label(run, picture) : label)));
    fill(facts, ...factsOf(run, picture).map(([name, value]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  };
  put(gridOf(frames), captionOf(prompt), tools, facts);
  if (run.failures?.length) {
    const allFiltered = run.failures.every(({ status }) => status === "filtered");
    const became = allFiltered ? "kept back" : "could not be made";
    stage().append(make("p", { class: "wrong" }, `${run.failures.length} ${became}: ${run.failures[0].message}`));
  }
  select(Math.min(chosen, frames.length - 1));
}

function factsOf({ answer, request }, picture) {
  const used = answer?.parameters ?? request.fields;
  const facts = [["Seed", String(picture.seed)], ["Size", `${picture.width} × ${picture.height}`]];
  if (used.num_inference_steps) facts.push(["Steps", String(used.num_inference_steps)]);
  if (used.guidance_scale !== undefined) facts.push(["Guidance", String(used.guidance_scale)]);
  if (used.sampler) facts.push(["Sampler", used.sampler]);
  if (answer) facts.push(["Model", answer.model]);
  if (used.style_preset) facts.push(["Style", used.style_preset]);
  if (used.loras?.length) facts.push(["LoRAs", used.loras.map(({ name, scale }) => `${name} ${scale}`).join(", ")]);
  if (kindOf(request)) facts.push(["Kind", kindOf(request)]);
  if (picture.continued) facts.push(["Begun from", `a near picture, ${picture.continued.steps} steps on`]);
  if (picture.safety?.status === "flagged") facts.push(["Flagged", picture.safety.category]);
  if (picture.safety?.status === "unchecked") facts.push(["Safety", "could not be checked"]);
  if (answer?.cached) facts.push(["From", "the cache"]);
  else if (answer) facts.push(["Made in", `${(answer.timings.total_ms / 1000).toFixed(1)} s`]);
  return facts;
}
