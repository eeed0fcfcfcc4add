/** The request that the choices make, here and elsewhere. */

import { byId } from "./dom.js";
import { curl, python, spread } from "./snippets.js";
import { page, radio } from "./state.js";

/** @returns {{type: string, body: string, file: string}} */
export function body() {
  if (radio("source") === "csv") return { type: "text/csv", body: byId("csv").value, file: "rows.csv" };
  const { window, start, future } = page.detail.spec.example;
  const fixed = page.detail.spec.example.static;
  const content = { window, ...(start ? { start } : {}), ...(future ? { future } : {}), ...(fixed ? { static: fixed } : {}) };
  return { type: "application/json", body: spread(content), file: "rows.json" };
}

/**
 * @param {string} model
 * @param {string} version
 * @param {any} spec
 */
export function query(model, version, spec) {
  const steps = Number(byId("steps").value);
  const said = new URLSearchParams({ model });
  if (version !== "latest") said.set("version", version);
  said.set("steps", String(steps));
  const calibrated = spec?.intervals && (spec.intervals.extrapolate || steps <= spec.intervals.calibrated_steps);
  const levels = (spec?.intervals?.levels ?? []).map(String).filter((/** @type {string} */ level) => page.levels.has(level));
  if (calibrated && levels.length) said.set("level", levels.join(","));
  return `forecast?${said.toString().replaceAll("%2C", ",")}`;
}

/** Shows it as a command or a program. */
export function snippet() {
  const given = body();
  const url = new URL(query(byId("model").value, byId("version").value, page.detail.spec), location.href.split("#")[0]).href;
  const said = { url, ...given, guarded: page.guarded };
  byId("snippet").textContent = radio("language") === "curl" ? curl(said) : python(said);
  const long = given.body.length > 65536 ? `Save the rows as ${given.file} beside it. ` : "";
  byId("snippet-words").textContent = long + (page.guarded ? "FORETELL_KEY is to hold the key." : "");
  byId("copied").textContent = "";
}

export async function copy() {
  const text = byId("snippet").textContent;
  try {
    await navigator.clipboard.writeText(text);
    byId("copied").textContent = "Copied.";
  } catch {
    // Without HTTPS there is no clipboard but by hand, save on this machine itself.
    getSelection()?.selectAllChildren(byId("snippet"));
    byId("copied").textContent = document.execCommand("copy") ? "Copied." : "It is selected: copy it with the keyboard.";
  }
}
