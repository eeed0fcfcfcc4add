/** One step in words and numbers, for eyes and for ears, and all of them as a table. */

import { el, percent, told } from "./dom.js";
import { looked, whereLooked } from "./picture.js";

/** @typedef {import("./picture.js").Picture} Picture */

/**
 * @param {Picture} shown
 * @param {number} step from 0
 */
const heading = (shown, step) =>
  `Step ${step + 1} of ${shown.line.forecast.length}${shown.timed ? `, ${shown.when(shown.rows + step)}` : ""}`;

/**
 * @param {Picture} shown
 * @param {number} step
 */
function figures(shown, step) {
  const withUnit = (/** @type {number | null | undefined} */ value) => `${told(value)}${shown.unit ? ` ${shown.unit}` : ""}`;
  const found = [{ kind: "ahead", name: shown.line.name, words: withUnit(shown.line.forecast[step]) }];
  for (const band of shown.line.bands) {
    found.push({ kind: "", name: `${band.level} %`, words: `${told(band.lower[step])} to ${told(band.upper[step])}` });
  }
  if (shown.other) found.push({ kind: "other", name: shown.other.name, words: withUnit(shown.other.forecast[step]) });
  return found;
}

/**
 * @param {Picture} shown
 * @param {number} step
 * @returns {string[]} a paragraph, or none where there is no attention
 */
function attended(shown, step) {
  const found = whereLooked(shown, step);
  if (!found) return [];
  const words = [`Looked most at ${found.most.join(", ")}; ${found.half}.`];
  const each = shown.attention?.stepsPerRow ?? 1;
  const first = Math.floor(step / each) * each;
  if (each > 1) words.push(`Steps ${first + 1} to ${Math.min(first + each, shown.line.forecast.length)} share these weights.`);
  return [words.join(" ")];
}

/**
 * All that is to be told of a step, in a line.
 * @param {Picture} shown
 * @param {number} step from 0
 */
export function inWords(shown, step) {
  const numbers = figures(shown, step).map(({ name, words }) => `${name} ${words}`);
  return [heading(shown, step), ...numbers, ...attended(shown, step)].join("; ");
}

/**
 * The same in a box; of a row of the history where one is pointed at.
 * @param {HTMLElement} box
 * @param {Picture} shown
 * @param {number} step from 0
 * @param {number | null} row of the history
 */
export function readout(box, shown, step, row) {
  const entry = (/** @type {string} */ kind, /** @type {string} */ name, /** @type {string} */ words) =>
    el("div", { class: kind }, el("dt", {}, name), el("dd", {}, words));
  const hints = attended(shown, step).map((words) => el("p", { class: "hint" }, words));
  if (row === null) {
    if (!shown.attention) hints.push(el("p", { class: "hint" }, `${shown.line.name} has no attention to show.`));
    const entries = figures(shown, step).map(({ kind, name, words }) => entry(kind, name, words));
    box.replaceChildren(el("p", { class: "when" }, heading(shown, step)), el("dl", {}, ...entries), ...hints);
    return;
  }
  const value = shown.history[row];
  const entries = [entry("", "history", value === null ? "missing" : `${told(value)} ${shown.unit}`)];
  const found = looked(shown, step);
  const weight = found?.weights[row - found.first];
  if (weight !== undefined) entries.push(entry("attention", `attention of step ${step + 1}`, percent(weight)));
  box.replaceChildren(el("p", { class: "when" }, shown.when(row)), el("dl", {}, ...entries), ...hints);
}

/**
 * Every step's numbers.
 * @param {Picture} shown
 */
export function table({ line, other, target, unit, timed, rows: before, when }) {
  const heads = ["step", ...(timed ? ["time"] : []), `${target}${unit ? `, ${unit}` : ""}`,
    ...line.bands.flatMap(({ level }) => [`${level} % from`, "to"]), ...(other ? [other.name] : [])];
  const rows = line.forecast.map((value, at) => [String(at + 1), ...(timed ? [when(before + at)] : []), told(value),
    ...line.bands.flatMap(({ lower, upper }) => [told(lower[at]), told(upper[at])]), ...(other ? [told(other.forecast[at])] : [])]);
  const cells = (/** @type {string[]} */ row) => row.map((cell, at) => el(at ? "td" : "th", at ? {} : { scope: "row" }, cell));
  return el("table", {},
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row)))));
}
