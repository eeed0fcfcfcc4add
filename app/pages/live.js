/** How the service is now: asked every few seconds while somebody looks. */

import { byId } from "./dom.js";
import { ask, Trouble } from "./service.js";

const EVERY_MS = 5_000;
const FORECASTS = new Set(["/predict", "/forecast"]);

/** @typedef {{at: number, answered: number, buckets: Map<number, number>, waiting: number}} Sample */

/**
 * Reads what is needed of the text format of Prometheus.
 * @param {string} text
 * @returns {Sample}
 */
export function sample(text) {
  const found = { at: performance.now() / 1000, answered: 0, buckets: new Map(), waiting: 0 };
  for (const line of text.split("\n")) {
    const read = /^(foretell_[a-z_]+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!read) continue;
    const [, name, labels = "", value] = read;
    if (name === "foretell_waiting_rows") found.waiting += Number(value);
    const route = /route="([^"]*)"/.exec(labels)?.[1] ?? "";
    if (!FORECASTS.has(route)) continue;
    if (name === "foretell_request_seconds_count") found.answered += Number(value);
    if (name === "foretell_request_seconds_bucket") {
      const le = /le="([^"]*)"/.exec(labels)?.[1] ?? "";
      const bound = le === "+Inf" ? Infinity : Number(le);
      found.buckets.set(bound, (found.buckets.get(bound) ?? 0) + Number(value));
    }
  }
  return found;
}

/**
 * The bound under which so large a share of the requests between two samples was answered; NaN where there were none.
 * @param {Sample} before
 * @param {Sample} after
 * @param {number} share
 */
export function quantile(before, after, share) {
  const bounds = [...after.buckets.keys()].sort((one, other) => one - other);
  const counts = bounds.map((bound) => (after.buckets.get(bound) ?? 0) - (before.buckets.get(bound) ?? 0));
  const all = counts.at(-1) ?? 0;
  return all > 0 ? bounds[counts.findIndex((count) => count >= share * all)] : NaN;
}

/**
 * Begins to ask; `told` hears whether the service is ready each time that it changes, and `tick` after each look.
 * @param {{changed: (ready: boolean) => void, tick: () => void}} listener
 */
export function watch({ changed, tick }) {
  /** @type {Sample | null} */
  let before = null;
  /** @type {boolean | null} */
  let ready = null;
  let timer = 0, busy = false;

  async function look() {
    clearTimeout(timer);
    if (document.hidden || busy) return;
    busy = true;
    const now = await isReady();
    if (now !== ready) changed(now === true);
    ready = now;
    state(now === null ? ["unreachable", "bad"] : now ? ["ready", "good"] : ["not ready", "warn"]);
    if (now === null) figures("–", "–", "–");
    else await count();
    tick();
    busy = false;
    timer = setTimeout(look, EVERY_MS);
  }

  async function count() {
    try {
      const after = sample(await (await ask("metrics")).text());
      const span = before ? after.at - before.at : 0;
      const restarted = before !== null && after.answered < before.answered;
      if (!before || restarted) figures(rows(after.waiting), "…", "…");
      else {
        const rate = (after.answered - before.answered) / span;
        const bound = quantile(before, after, 0.95);
        const latency = Number.isNaN(bound) ? "idle" : bound === Infinity ? "p95 over 30 s" : `p95 ≤ ${milliseconds(bound)}`;
        figures(rows(after.waiting), `${rate < 10 ? Math.round(rate * 10) / 10 : Math.round(rate)}/s`, latency);
      }
      before = after;
    } catch (error) {
      if (!(error instanceof Trouble)) throw error;
      before = null;
      const words = error.status === 401 || error.status === 403 ? "needs a key" : "–";
      figures("–", words, words);
    }
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    // What happened meanwhile is no rate of now.
    before = null;
    look();
  });
  look();
  return { look };
}

const rows = (/** @type {number} */ count) => `${count} ${count === 1 ? "window" : "windows"}`;
const milliseconds = (/** @type {number} */ s) => (s < 1 ? `${Math.round(s * 10000) / 10} ms` : `${s} s`);

async function isReady() {
  try {
    return (await (await ask("health/ready")).json()).ready === true;
  } catch (error) {
    return error instanceof Trouble && error.status === 0 ? null : false;
  }
}

/** @param {string[]} said */
function state([words, kind]) {
  const shown = byId("live-state");
  if (shown.textContent !== words) shown.textContent = words;
  shown.className = kind;
}

/** @param {string[]} said */
function figures(...said) {
  ["live-queue", "live-rate", "live-latency"].forEach((id, index) => {
    byId(id).textContent = said[index];
  });
}
