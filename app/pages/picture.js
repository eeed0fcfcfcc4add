/** What the chart and the table show, out of a history and one or two answers. */

import { percent } from "./dom.js";
import { clock } from "./times.js";

/**
 * @typedef {{level: string, lower: (number | null)[], upper: (number | null)[]}} Band of the steps
 * @typedef {{name: string, forecast: number[], bands: Band[]}} Line a forecast of one target
 * @typedef {{weights: number[][], stepsPerRow: number, first: (row: number) => number}} Attention
 *   `first` is where on the x axis the first weight of a row lies
 * @typedef {{target: string, unit: string, timed: boolean, zone: string, x: number[], rows: number,
 *   history: (number | null)[], line: Line, other: Line | null, attention: Attention | null,
 *   when: (index: number) => string}} Picture x has the history's rows and then the steps
 */

/**
 * One series' part of an answer; those to several windows are one level deeper.
 * @param {any} answer
 * @param {number} series
 */
export function part(answer, series) {
  if (!answer.forecasts) return answer;
  const intervals = answer.intervals && Object.fromEntries(Object.entries(answer.intervals).map(
    ([level, band]) => [level, { lower: band.lower[series], upper: band.upper[series] }],
  ));
  const attention = answer.attention && { ...answer.attention, weights: answer.attention.weights[series] };
  return { ...answer, forecast: answer.forecasts[series], intervals, attention, timestamps: answer.timestamps?.[series] };
}

/**
 * @param {any} answer of one window
 * @param {string} target
 * @param {string} name
 * @returns {Line | null}
 */
function line(answer, target, name) {
  const at = answer.targets.indexOf(target);
  if (at < 0) return null;
  const column = (/** @type {(number | null)[][]} */ rows) => rows.map((row) => row[at]);
  const bands = Object.entries(answer.intervals ?? {})
    .map(([level, band]) => ({ level, lower: column(band.lower), upper: column(band.upper) }))
    .sort((one, two) => Number(two.level) - Number(one.level));
  return { name, forecast: column(answer.forecast).map(Number), bands };
}

/**
 * @param {any} spec
 * @param {number} step seconds between rows
 * @param {import("./table.js").History | undefined} history
 * @param {any} answer
 * @param {any} other of the version to compare with, or null
 * @param {string} target
 * @returns {Picture}
 */
export function picture(spec, step, history, answer, other, target) {
  const shown = /** @type {Line} */ (line(answer, target, `${answer.model} ${answer.version}`));
  const past = history?.columns.get(target) ?? [];
  const rows = past.length;
  const first = answer.timestamps ? Date.parse(answer.timestamps[0]) / 1000 : NaN;
  const timed = Number.isFinite(first);
  const length = rows + shown.forecast.length;
  const x = Array.from({ length }, (_, index) => (timed ? first + (index - rows) * step : index - rows + 1));
  const tell = timed ? clock(spec.timezone ?? "UTC", step) : () => "";
  const when = (/** @type {number} */ index) => (timed ? tell(x[index]) : index < rows ? `row ${index - rows + 1}` : "");
  const sameSteps = other && other.forecast.length === answer.forecast.length;
  const feature = spec.features.find((/** @type {any} */ one) => one.name === target);
  return {
    target, unit: feature?.unit ?? "", timed, zone: spec.timezone ?? "UTC", x, rows, history: past, line: shown, when,
    other: sameSteps ? line(other, target, `${other.model} ${other.version}`) : null,
    attention: attention(spec, answer, rows),
  };
}

/**
 * @param {any} spec
 * @param {any} answer
 * @param {number} rows of the history
 * @returns {Attention | null}
 */
function attention(spec, answer, rows) {
  if (!answer.attention?.weights?.length) return null;
  const { weights, steps_per_row: stepsPerRow } = answer.attention;
  // A sliding window has moved on by what was forecast before; a carried state looks back at the window that was given.
  const moved = (/** @type {number} */ row) =>
    spec.recursion === "sliding" ? Math.floor(row / spec.attention_rows) * spec.horizon : 0;
  return { weights, stepsPerRow, first: (row) => rows - weights[row].length + moved(row) };
}

/**
 * The row of weights of a step, and where on the x axis it begins.
 * @param {Picture} shown
 * @param {number} step from 0
 */
export function looked(shown, step) {
  if (!shown.attention) return null;
  const row = Math.min(Math.floor(step / shown.attention.stepsPerRow), shown.attention.weights.length - 1);
  return { row, weights: shown.attention.weights[row], first: shown.attention.first(row) };
}

/**
 * In words where a step looked: its three heaviest rows, and how far back half of the weight reaches.
 * @param {Picture} shown
 * @param {number} step from 0
 */
export function whereLooked(shown, step) {
  const found = looked(shown, step);
  if (!found) return null;
  const { weights, first } = found;
  const heaviest = weights.map((weight, at) => ({ weight, at })).sort((one, two) => two.weight - one.weight).slice(0, 3);
  const all = weights.reduce((sum, weight) => sum + weight, 0);
  let reached = 0, back = 0;
  while (back < weights.length && reached < all / 2) { back += 1; reached += weights[weights.length - back]; }
  const place = (/** @type {number} */ at) => (at < 0 ? "before the first row" : shown.when(at) || `step ${at - shown.rows + 1}`);
  return {
    most: heaviest.map(({ weight, at }) => `${place(first + at)} (${percent(weight)})`),
    half: `half of the attention is on the last ${back} of ${weights.length} rows`,
  };
}
