// START HERE. The page's parts, and how they work together.

import { getKey, Refusal, setKey, Unreachable } from "./api.js";
import { connectCode, showCode } from "./code.js";
import { compare, compareLabel, connectCompare, unmark } from "./compare.js";
import { Control } from "./control.js";
import { announce, download, find } from "./dom.js";
import { examplesFor } from "./examples.js";
import { clearFaults, connectForm, Mistake, readFields, setInput, showFaults, showOffered, writeFields } from "./form.js";
import { Loras } from "./loras.js";
import { Reference } from "./reference.js";
import { makePictures, stop, Stopped } from "./making.js";
import { MaskPainter } from "./mask.js";
import { connectPaste, PictureInput } from "./picture-input.js";
import { loadOffered, lookNow, modelOf, offered, watch, willAskAgain } from "./server.js";
import { addRun, has, isEmpty, latest, loadSheet, removePicture } from "./sheet.js";
import { isFree, showMaking, showRun, showStop, showsRun, showWelcome } from "./stage.js";
import { connectCounts } from "./tokens.js";

/** A click that was meant for the button before it does not cancel at once. */
const DOUBLE_CLICK_MS = 400;

/** The server's own figures are up to a second old. */
const REPORT_AGE_MS = 1200;

let mask = null;
let begun = 0;
let busy = false;

const input = new PictureInput("input-picture", "Picture to start from", useInput);
const control = new Control();
const loras = new Loras();
const reference = new Reference();
const painter = new MaskPainter(useMask);

function useInput(blob) {
  find("input-options").hidden = find("input-tag").hidden = blob === null;
  useMask(null);
  painter.usePicture(blob).catch(() => {
    if (input.blob !== blob) return;
    input.set(null);
    showFaults("This picture cannot be read", "Take another file.", []);
  });
}

function useMask(painted) {
  mask = painted;
  find("feather").hidden = painted === null;
  find("mask-button").textContent = painted ? "Change the mask" : "Paint a mask";
  // The server's own defaults: all the way inside a mask, most of it without one.
  find("strength").placeholder = painted ? "1" : "0.8";
  if (find("strength").value === "") setInput("strength", "", find("strength").placeholder);
  find("mask-note").textContent = painted ? "A mask is painted." : "Only what you paint is made anew.";
}

function readRequest() {
  const followed = control.read();
  const takenAfter = reference.read();
  const files = {
    init: input.blob,
    mask: input.blob && mask,
    control: followed && control.input.blob,
    reference: takenAfter && reference.input.blob,
  };
  const fields = readFields({
    hasInput: files.init !== null,
    hasMask: files.mask !== null,
    hasControl: followed !== null,
    hasReference: takenAfter !== null,
  });
  if (takenAfter) fields.reference = takenAfter;
  const used = loras.read();
  if (used) fields.loras = used;
  return { fields, control: followed, files };
}

/** Puts a request into the form, files included. */
async function writeRequest({ fields, control: asked, files }) {
  writeFields(fields);
  input.set(files.init);
  if (await painter.usePicture(files.init, files.mask)) useMask(files.mask);
  control.write(asked, files.control);
  loras.write(fields.loras);
  reference.write(fields.reference ?? null, files.reference);
  find("input-fold").open ||= files.init !== null;
}

async function submit() {
  if (busy) return;
  clearFaults();
  let request;
  try {
    request = readRequest();
  } catch (error) {
    if (!(error instanceof Mistake)) throw error;
    showFaults("Something is not right yet", error.message, error.faults);
    return;
  }
  await run(request);
}

async function run(request) {
  // Before anything is waited for: what is pressed twice begins once.
  if (busy) return;
  showBusy(true);
  try {
    const made = await makePictures(request, prepareView(request));
    await keep(request, made);
    announce(made.pictures.length > 1 ? `${made.pictures.length} pictures are ready` : "The picture is ready");
  } catch (error) {
    if (error.pictures?.length) await keep(request, { answer: null, pictures: error.pictures, failures: [] });
    tell(error, request, error.pictures?.length > 0);
  } finally {
    showBusy(false);
    setTimeout(lookNow, REPORT_AGE_MS);
  }
}

async function prepareView(request) {
  const view = showMaking(request, await sizeOf(request));
  // Whatever was pressed to begin it may be gone: the focus is not to begin at the top of the page again.
  if (document.activeElement === document.body) find("stage").focus({ preventScroll: true });
  return view;
}

function tell(error, request, hasPictures) {
  const again = () => run(request);
  if (error instanceof Stopped) {
    announce("Cancelled");
    if (!hasPictures) showStop("Cancelled", "Nothing was made, and its place was given to others.", again);
  } else if (error instanceof Unreachable) {
    lookNow();
    if (!hasPictures) showStop("The connection was lost", "What was asked for is still here.", again);
  } else if (error instanceof Refusal) {
    const later = error.retryAfter ? ` It should work in ${error.retryAfter} s.` : "";
    showFaults("The server refused this", `${error.message}${later}`, error.faults);
    if (!hasPictures && error.faults.length) showLatest();
    else if (!hasPictures) showStop("Nothing was made", `${error.message}${later}`, again);
    if (error.status === 401) openKeyPanel("");
  } else {
    showStop("Something is wrong with this page", "Reload it, please. Your pictures are kept.", null);
    throw error;
  }
}

async function keep(request, { answer, pictures, failures }) {
  if (!pictures.length) {
    showStop("Nothing could be made", failures[0]?.message ?? "", () => run(request));
    return;
  }
  const now = Date.now();
  const made = { id: Math.max(now, (latest()?.id ?? 0) + 1), time: now, request, answer, pictures, failures };
  showRun(made, ACTIONS);
  await addRun(made);
}

/** The size to leave room for. The server decides it where none is chosen. */
async function sizeOf({ fields, files }) {
  if (fields.width) return fields;
  if (fields.ad_format) return offered.ad_formats.find(({ name }) => name === fields.ad_format);
  const blob = files.init ?? files.control;
  if (blob) {
    const picture = await createImageBitmap(blob).catch(() => null);
    if (picture) return picture;
  }
  const side = modelOf(fields.model_name)?.native_size ?? 512;
  return { width: side, height: side };
}

function showBusy(now) {
  busy = now;
  const [make, cancel] = [find("make"), find("cancel")];
  const hadFocus = document.activeElement === (busy ? make : cancel);
  if (busy) begun = performance.now();
  make.hidden = busy;
  cancel.hidden = !busy;
  if (hadFocus) (busy ? cancel : make).focus();
  document.body.classList.toggle("busy", busy);
  if (busy && matchMedia("(max-width: 760px)").matches) find("stage").scrollIntoView({ block: "start" });
}

const fileName = ({ request }, { seed }) => {
  const words = request.fields.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  return `${words.slice(0, 8).join("-")}-${seed}.png`;
};

const ACTIONS = [
  ["Download", (made, picture) => download(picture.blob, fileName(made, picture)), true],
  ["Use as input", (made, picture) => {
    input.set(picture.blob);
    find("input-fold").open = true;
    find("prompt").focus();
    announce("The next picture starts from this one");
  }],
  ["Use again", async ({ request }, picture) => {
    const { num_images: _, ...fields } = request.fields;
    await writeRequest({ ...request, fields: { ...fields, seed: picture.seed } });
    find("settings-fold").open = true;
    find("prompt").focus();
    announce("The form is filled in as it was for this picture");
  }],
  [compareLabel, (made, picture) => {
    if (!compare(made, picture)) announce("Marked. Choose another picture to compare it with.");
    showRun(made, ACTIONS, made.pictures.indexOf(picture));
  }],
  ["Code", showCode],
  ["Delete", async (made, picture) => {
    if (!(await removePicture(made, picture))) return;
    if (has(made)) showRun(made, ACTIONS);
    else showLatest();
    find("stage").focus();
  }],
];

function showLatest() {
  if (isEmpty()) welcome();
  else showRun(latest(), ACTIONS);
}

function welcome() {
  showWelcome(examplesFor(offered.models[0]?.name), ([prompt, , , , more]) => {
    writeFields({ prompt, ...defaults(), ...more });
    submit();
  });
}

/** What the demo models do best: their guidance is lower than that of large ones. */
function defaults() {
  return offered.models[0]?.name.startsWith("demo") ? { guidance_scale: 6 } : {};
}

async function loadServer() {
  try {
    await loadOffered();
  } catch (error) {
    if (error instanceof Refusal && error.status === 401) openKeyPanel(getKey() ? "This key is not known here." : "");
    else if (!willAskAgain()) showFaults("The server refused this", error.message, []);
    return;
  }
  showOffered();
  control.showTypes();
  reference.showAdapters();
  loras.show();
  const guidance = find("guidance_scale");
  if (guidance.value === guidance.defaultValue) setInput("guidance_scale", defaults().guidance_scale ?? guidance.value);
  if (isEmpty() && isFree()) welcome();
}

function openKeyPanel(fault) {
  find("key-button").hidden = false;
  find("key-fault").textContent = fault;
  find("key-panel").showPopover();
  find("key").focus();
}

function connectKey() {
  find("key-button").hidden = getKey() === "";
  addEventListener("keyneeded", () => (find("key-button").hidden = false));
  find("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    setKey(find("key").value.trim());
    find("key-panel").hidePopover();
    clearFaults();
    await loadServer();
    dispatchEvent(new Event("formwritten"));
  });
}

function connectMaking() {
  find("form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  find("cancel").addEventListener("click", () => {
    if (performance.now() - begun > DOUBLE_CLICK_MS) stop();
  });
  find("mask-button").addEventListener("click", () => painter.open());
  document.addEventListener("keydown", (event) => {
    // These keys choose among, or give up, what a text is being composed of.
    if (event.isComposing) return;
    if (event.key === "Enter" && event.repeat) {
      // A key that is held down asks once; in a text it makes lines.
      if (event.ctrlKey || event.metaKey || !event.target.matches("textarea")) event.preventDefault();
      return;
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]")) submit();
    if (event.key === "Escape" && busy && !document.querySelector("dialog[open], [popover]:popover-open")) stop();
  });
  connectPaste(placeToPaste);
}

/** The one place that is open takes a pasted picture; else it is where a picture starts from. */
function placeToPaste() {
  if (find("input-fold").open) return input;
  if (find("control-fold").open) return control.input;
  return find("reference-fold").open ? reference.input : input;
}

connectForm();
connectCode();
connectCompare();
connectKey();
connectMaking();
await loadSheet(
  (made, place) => {
    showRun(made, ACTIONS, place);
    if (matchMedia("(max-width: 760px)").matches) find("stage").scrollIntoView({ block: "start" });
  },
  () => {
    unmark();
    if (showsRun()) showLatest();
  },
);
if (!isEmpty()) showRun(latest(), ACTIONS);
await loadServer();
connectCounts();
watch(loadServer);
