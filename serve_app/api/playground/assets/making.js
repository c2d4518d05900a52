// Making pictures: sends a request, follows its events, and ends in one of few ways.

import { ask, BASE, decode, events, refusalOfEvent, Unreachable } from "./api.js";
import { bodyOf, pathOf, PREVIEWS } from "./request.js";

/** How long the server is given to hear that it shall stop, before its answer is broken off. */
const STOP_MS = 2000;

/** The pictures stopped because somebody wanted it. */
export class Stopped extends Error {}

let current = null;

export const isMaking = () => current !== null;

/**
 * Makes the pictures of `request` and returns `{answer, pictures, failures}`. `viewed` is the promise of a view, which is
 * told of all that happens on the way: `progress`, `preview`, `picture` and `failed`. Throws Refusal, Unreachable, or
 * Stopped; whatever was finished before is in the error's `pictures`.
 */
export async function makePictures(request, viewed) {
  const made = { answer: null, pictures: [], failures: [] };
  const making = (current = { controller: new AbortController(), id: null, stopped: false });
  try {
    const view = await viewed;
    const { headers, body } = bodyOf(request);
    const response = await ask(`${pathOf(request)}?previews=${PREVIEWS}`, {
      method: "POST",
      headers: { ...headers, Accept: "text/event-stream" },
      body,
      signal: making.controller.signal,
    });
    making.id = response.headers.get("X-Request-Id");
    for await (const event of events(response)) {
      take(event, made, view);
      if (made.answer) return made;
    }
    // The stream ended without an end of its own: the way to the server broke.
    throw new Unreachable();
  } catch (error) {
    const stopped = making.stopped || error.name === "AbortError" || error.code === "cancelled";
    const reason = stopped ? new Stopped() : error;
    reason.pictures = made.pictures;
    throw reason;
  } finally {
    current = null;
  }
}

function take({ name, data }, made, view) {
  if (name === "progress") view.progress(data);
  else if (name === "preview") view.preview(data.index, decode(data.data, "image/jpeg"));
  else if (name === "image") {
    const { index, seed, width, height, safety, continued } = data;
    const picture = { index, seed, width, height, safety, continued, blob: decode(data.data, `image/${data.format}`) };
    made.pictures.push(picture);
    made.pictures.sort((a, b) => a.index - b.index);
    view.picture(picture);
  } else if (name === "failed") {
    made.failures.push(data);
    view.failed(data);
  } else if (name === "error") throw refusalOfEvent(data);
  else if (name === "done") made.answer = data;
}

/** Stops what is being made. The server hears it by name, because a proxy may keep a broken connection open. */
export async function stop() {
  const making = current;
  if (!making || making.stopped) return;
  making.stopped = true;
  if (making.id) {
    const signal = AbortSignal.timeout(STOP_MS);
    await ask(`${BASE}/requests/${encodeURIComponent(making.id)}`, { method: "DELETE", signal }).catch(() => {});
  }
  making.controller.abort();
}
