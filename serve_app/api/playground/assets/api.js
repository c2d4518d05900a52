// Asks the server, with the key if there is one, and turns what goes wrong into words and fields.

export const BASE = "/ads/v2/diffusion";
const KEY = "darkroom-key";

/** The server's refusal. `faults` name fields and what is wrong with them. */
export class Refusal extends Error {
  constructor(status, problem, retryAfter) {
    super(problem?.detail ?? `The server answered with status ${status}.`);
    this.status = status;
    this.code = problem?.error?.code ?? "";
    this.retryAfter = retryAfter;
    this.requestId = problem?.request_id ?? "";
    this.faults = (problem?.errors ?? []).map(({ pointer, message }) => ({ field: fieldOf(pointer), message }));
  }
}

/** No answer at all: the server, or the way to it, is gone. */
export class Unreachable extends Error {}

let key = readKey();

function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export const getKey = () => key;

/** Takes a key, and keeps it for this tab. */
export function setKey(given) {
  key = given;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // Where storage is blocked, the key lasts until the page is left.
  }
}

/** Returns the answer. Throws Refusal, Unreachable, or an AbortError where `signal` says so. */
export async function ask(path, { headers = {}, ...options } = {}) {
  if (key) headers = { ...headers, Authorization: `Bearer ${key}` };
  let response;
  try {
    // No `cache` option: with one, browsers send Cache-Control, which means the server's own cache of results.
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
  if (response.ok) return response;
  throw await refusalOf(response);
}

/** Returns the answer's JSON. Throws as `ask` does; an answer that breaks off, or is no JSON, is none. */
export async function askJson(path, options) {
  const response = await ask(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
}

async function refusalOf(response) {
  let problem = null;
  try {
    problem = await response.json();
  } catch {
    // A proxy's answer, whose text is for nobody.
  }
  if (response.status === 401) dispatchEvent(new CustomEvent("keyneeded", { detail: problem?.error?.code }));
  const wait = response.headers.get("Retry-After");
  return new Refusal(response.status, problem, wait === null ? null : Number(wait));
}

/** The refusal in an `error` event of a stream. */
export function refusalOfEvent(problem) {
  return new Refusal(problem.status, problem, null);
}

/** The field that a JSON pointer leads to, or `?name` names: of a list's entries, the list. */
function fieldOf(pointer) {
  const [first, place, inner] = pointer.replace(/^[#?]?\/?/, "").split("/");
  if (first === "controls" && place !== undefined) {
    const names = {
      type: "controlnet_type",
      scale: "controlnet_conditioning_scale",
      start: "control_guidance_start",
      end: "control_guidance_end",
    };
    return names[inner] ?? "controlnet_type";
  }
  return first;
}

/** Yields the events of an answer, as `{name, data}`. Throws Unreachable if it breaks off, or an AbortError. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await readFrom(reader);
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line]);
        const of = (name) => lines.find(([first]) => first === name)?.[1].slice(name.length + 1).trim();
        if (of("event")) yield { name: of("event"), data: JSON.parse(of("data")) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function readFrom(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
}

/** The bytes of a base64 text as a file. */
export function decode(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type });
}
