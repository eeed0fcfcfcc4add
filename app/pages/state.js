/** What the page knows, and what of it its address keeps. */

import { byId } from "./dom.js";
import { key } from "./service.js";
import { seconds } from "./times.js";

export const page = {
  /** @type {any[] | null} null: not known yet */ models: null,
  /** @type {any} */ detail: null,
  /** @type {any} */ otherDetail: null,
  /** @type {any} */ answer: null,
  /** @type {any} */ otherAnswer: null,
  /** @type {import("./table.js").History[]} */ histories: [],
  /** @type {import("./picture.js").Picture | null} */ picture: null,
  target: "",
  series: 0,
  step: 0,
  levels: new Set(["80", "95"]),
  guarded: key.get() !== "",
  /** @type {AbortController | null} */ asking: null,
  /** @type {AbortController | null} */ choosing: null,
  /** @type {number | null} the row of the history that is pointed at */ row: null,
  /** Whether the rows came at once, by a file, so that whoever brought it is to be led to what is wrong. */
  taken: false,
};

export const radio = (/** @type {string} */ name) => /** @type {any} */ (document.querySelector(`input[name="${name}"]:checked`))?.value;
export const step = () => seconds(page.detail.spec.frequency) || 1;

/** @returns {Record<string, string>} */
export const wanted = () => ({ model: byId("model").value, version: byId("version").value, compare: byId("compare").value });
export const remembered = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

export function remember() {
  const said = { ...wanted(), steps: byId("steps").value, levels: [...page.levels].join(","), target: page.target };
  const kept = Object.entries(said).filter(([, value]) => value !== "");
  try {
    history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
  } catch {
    // Some browsers count how often that happens; the next time will do.
  }
}
