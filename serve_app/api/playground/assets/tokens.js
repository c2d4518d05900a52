// How long the prompts are, in tokens, as the model's own tokenizer counts them on the server.

import { askJson, BASE } from "./api.js";
import { debounce, find } from "./dom.js";

const PROMPTS = ["prompt", "negative_prompt"];
const COUNTED = [...PROMPTS, "style_preset", "model_name"];

let asking = null;

async function count() {
  asking?.abort();
  const controller = (asking = new AbortController());
  const fields = Object.fromEntries(COUNTED.map((name) => [name, find(name).value || null]));
  fields.prompt ??= "";
  try {
    const body = JSON.stringify(fields);
    const headers = { "Content-Type": "application/json" };
    const counts = await askJson(`${BASE}/tokens`, { method: "POST", headers, body, signal: controller.signal });
    for (const name of PROMPTS) show(name, counts[name]);
  } catch (error) {
    // No number is better than a wrong one; the request itself will say what is the matter.
    if (error.name !== "AbortError") for (const name of PROMPTS) show(name, null);
  }
}

function show(name, counted) {
  const text = find(`${name}-count`);
  const over = counted !== null && (counted.tokens > counted.max_tokens || counted.chunks > counted.max_chunks);
  text.classList.toggle("over", over);
  text.textContent = counted === null ? "" : `${counted.tokens} of ${counted.max_tokens} tokens`;
  if (over) text.textContent += ", too long";
}

/** Counts when something has been written. */
export function connectCounts() {
  const soon = debounce(count, 300);
  for (const name of COUNTED) find(name).addEventListener("input", soon);
  addEventListener("formwritten", soon);
  soon();
}
