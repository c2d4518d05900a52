// The server: what it offers, how it is, and whether it is there at all.

import { askJson, BASE, Refusal, Unreachable } from "./api.js";
import { fill, find, make } from "./dom.js";

const EVERY_MS = 4000;
const AWAY_EVERY_MS = 1500;
const NOT_ALLOWED = new Set([401, 403]);
const NOT_NOW = new Set([408, 429]);
const AWAY = "The server does not answer. This page keeps trying, and nothing that you have made is lost.";
const MISSING = "What this server offers could not be read. This page keeps trying.";

/** What can be chosen; empty until it is known. */
export const offered = { models: [], samplers: [], styles: [], ad_formats: [], loras: [] };

let statisticsAllowed = true;
let away = false;
let timer = 0;

/** When lists that did not come are asked for again; null where none is missing, or it was refused for good. */
let askAgainAt = null;

export const willAskAgain = () => askAgainAt !== null;

/** Reads what can be chosen. Throws as `ask` does; `watch` asks again unless it is refused for good. */
export async function loadOffered() {
  const lists = ["models", "samplers", "styles", "ad-formats", "loras"];
  try {
    Object.assign(offered, ...(await Promise.all(lists.map((name) => askJson(`${BASE}/${name}`)))));
    statisticsAllowed = true;
    askAgainAt = null;
  } catch (error) {
    askAgainAt = isForNow(error) ? Date.now() + Math.max(AWAY_EVERY_MS, 1000 * (error.retryAfter || 0)) : null;
    throw error;
  } finally {
    showBanner(askAgainAt === null ? "" : MISSING);
  }
}

const isForNow = (error) => error instanceof Unreachable || NOT_NOW.has(error.status) || error.status >= 500;

/** The models that have a ControlNet of this type; all of them for none. */
export const modelsWith = (type) => offered.models.filter((model) => !type || model.controlnets.includes(type));

/** The model that a choice means: of none, the first. */
export const modelOf = (name) => offered.models.find((model) => model.name === name) ?? offered.models[0];

/**
 * Looks at the server now and then, more often while it is away or its lists are missing, and calls `back` when it has
 * returned, or the lists are to be asked for again.
 */
export function watch(back) {
  const look = async () => {
    clearTimeout(timer);
    try {
      if (!document.hidden) await lookOnce(back);
    } finally {
      clearTimeout(timer);
      timer = setTimeout(look, away || willAskAgain() ? AWAY_EVERY_MS : EVERY_MS);
    }
  };
  document.addEventListener("visibilitychange", look);
  addEventListener("looknow", look);
  look();
}

/** Has the server looked at now: something has begun or ended, or got no answer. */
export const lookNow = () => dispatchEvent(new Event("looknow"));

async function lookOnce(back) {
  let health;
  try {
    health = await (await fetch(`${BASE}/health`, { cache: "no-store" })).json();
  } catch {
    away = true;
    showState("away", "No answer");
    showBanner(AWAY);
    return;
  }
  if (away || (willAskAgain() && Date.now() >= askAgainAt)) {
    away = false;
    await back();
  }
  const statistics = statisticsAllowed ? await readStatistics() : null;
  showHealth(health, statistics);
}

async function readStatistics() {
  try {
    return await askJson(`${BASE}/stats`);
  } catch (error) {
    if (error instanceof Refusal && NOT_ALLOWED.has(error.status)) statisticsAllowed = false;
    else if (!(error instanceof Unreachable) && !(error instanceof Refusal)) throw error;
    return null;
  }
}

function showHealth(health, statistics) {
  const words = { healthy: "Ready", degraded: "Ready, without Redis", starting: "Starting", unhealthy: "Not ready" };
  const running = statistics?.images_running ?? 0;
  const waiting = statistics?.images_waiting ?? 0;
  const ready = health.status === "healthy" || health.status === "degraded";
  const busy = ready && running + waiting > 0;
  const text = busy ? `${running} running, ${waiting} waiting` : (words[health.status] ?? "Not ready");
  showState(busy ? "busy" : ready ? "ready" : "starting", text);
  const rows = [["State", words[health.status] ?? health.status]];
  if (health.device) rows.push(["Device", `${health.device}, ${health.backend}`]);
  rows.push(["Models in memory", String(health.loaded_models)]);
  if (statistics) rows.push(...figuresOf(statistics));
  const entries = rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  fill(find("server-figures"), ...entries);
  find("server-note").hidden = statistics !== null;
  find("server-note").textContent = "Its queue and figures are for keys with the scope operate.";
}

function figuresOf(statistics) {
  const rows = [
    ["Running", String(statistics.images_running)],
    ["Waiting", String(statistics.images_waiting)],
    ["Rows per call", statistics.mean_rows_per_call ? statistics.mean_rows_per_call.toFixed(1) : "none yet"],
    ["Found in the cache", `${Math.round(100 * statistics.cache_hit_rate)} %`],
  ];
  const lately = statistics.latency_ms?.["5m"];
  if (lately?.count) rows.push(["Half of all are ready in", `${(lately.p50 / 1000).toFixed(1)} s`]);
  return rows;
}

function showState(state, text) {
  find("server-button").dataset.state = state;
  find("server-text").textContent = text;
}

function showBanner(text) {
  find("banner").textContent = text;
  find("banner").hidden = !text;
}
