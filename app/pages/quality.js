/** How good a version was on its test span, by step: out of its spec. */

import { looks } from "./chart.js";
import { byId, colour, legend, percent, told } from "./dom.js";

const uPlot = /** @type {any} */ (globalThis).uPlot;
const NAMES = new Map([["last_value", "last value"], ["seasonal_naive", "seasonal naive"], ["linear", "linear"]]);
const DASHES = [[2, 3], [6, 3], [9, 3, 2, 3]];
const LEVELS = ["ahead", "attention", "other", "past"];

/** @typedef {{name: string, values: number[], stroke: string, dash?: number[], width?: number, kind: string}} Curve */

/** @type {Map<string, {plot: any, watched: ResizeObserver}>} */
const drawn = new Map();

/**
 * @param {any} spec
 * @param {any} other the spec of the version to compare with, or null
 * @param {string} target
 * @param {"mae" | "rmse"} measure
 */
export function quality(spec, other, target, measure) {
  errors(spec, other, target, measure);
  coverage(spec, target);
}

/**
 * @param {any} spec
 * @param {any} other
 * @param {string} target
 * @param {"mae" | "rmse"} measure
 */
function errors(spec, other, target, measure) {
  const of = (/** @type {any} */ scores) => scores?.[target]?.[measure] ?? null;
  const own = of(spec.metrics?.model);
  if (!own) return empty("errors", `The spec has no errors of ${target}.`);
  const unit = spec.features.find((/** @type {any} */ one) => one.name === target)?.unit ?? "";
  /** @type {Curve[]} */
  const curves = [{ name: `${spec.name} ${spec.version}`, values: own, stroke: colour("ahead"), width: 2.5, kind: "ahead" }];
  const compared = of(other?.metrics?.model);
  if (compared) curves.push({ name: `${other.name} ${other.version}`, values: compared, stroke: colour("other"), dash: [7, 4], width: 2, kind: "other dashed" });
  Object.entries(spec.metrics.baselines ?? {}).forEach(([name, scores], index) => {
    const values = of(scores);
    if (values) curves.push({ name: NAMES.get(name) ?? name, values, stroke: colour("muted"), dash: DASHES[index % DASHES.length], kind: `baseline-${index % DASHES.length}` });
  });
  const said = curves.slice(1).map((curve) => `${curve.name} ${told(mean(curve.values))}`);
  byId("errors-words").textContent =
    `On ${spec.metrics.windows.toLocaleString("en")} test windows ${target} was off by ${told(mean(own))} ${unit} ` +
    `(${measure.toUpperCase()}, mean of ${own.length} ${own.length === 1 ? "step" : "steps"})${said.length ? `; ${said.join(", ")}` : ""}.`;
  draw("errors", curves, { unit: `${measure.toUpperCase()}${unit ? `, ${unit}` : ""}`, range: (_, __, high) => [0, (high || 1) * 1.08] });
}

/**
 * @param {any} spec
 * @param {string} target
 */
function coverage(spec, target) {
  if (!spec.intervals) return empty("coverage", `${spec.name} ${spec.version} has no prediction intervals.`);
  /** @type {Curve[]} */
  const curves = [];
  const said = [];
  for (const [index, level] of spec.intervals.levels.entries()) {
    const name = String(level);
    const own = spec.intervals.scores?.[name]?.coverage?.[target] ?? spec.intervals.coverage?.[name];
    if (!own) continue;
    const values = own.map((/** @type {number} */ share) => share * 100);
    const kind = LEVELS[index % LEVELS.length];
    curves.push({ name: `${name} %`, values, stroke: colour(kind), width: 2, kind });
    curves.push({ name: "", values: values.map(() => Number(level)), stroke: colour(kind), dash: [2, 4], width: 1, kind: "" });
    said.push(`the ${name} % interval held ${percent(mean(values) / 100)}`);
  }
  if (!curves.length) return empty("coverage", "The spec does not say what the intervals held.");
  byId("coverage-words").textContent = `On the test windows ${said.join(", ")} of ${target}. Dotted: what was promised.`;
  draw("coverage", curves, { unit: "held, %", range: (_, low) => [Math.min(Math.floor((low ?? 50) / 10) * 10, 70), 100] });
}

/**
 * @param {string} id
 * @param {Curve[]} curves
 * @param {{unit: string, range: (plot: any, low: number, high: number) => number[]}} how
 */
function draw(id, curves, { unit, range }) {
  forget(id);
  const host = byId(id);
  host.hidden = false;
  const length = Math.max(...curves.map((curve) => curve.values.length));
  const x = Array.from({ length }, (_, index) => index + 1);
  const padded = curves.map((curve) => [...curve.values, ...new Array(length - curve.values.length).fill(null)]);
  const common = looks({ unit, x: "step" });
  const size = () => ({ width: Math.max(host.clientWidth, 160), height: host.clientHeight });
  const plot = new uPlot({
    ...common, ...size(), padding: [8, 12, 0, 0],
    series: [{}, ...curves.map(({ stroke, dash, width = 1.5 }) => ({ stroke, dash, width, points: { show: length === 1 } }))],
    scales: { x: { time: false, ...(length === 1 ? { range: [0, 2] } : {}) }, y: { range } },
    cursor: { show: false },
  }, [x, ...padded], host);
  const watched = new ResizeObserver(() => plot.setSize(size()));
  watched.observe(host);
  drawn.set(id, { plot, watched });
  legend(byId(`${id}-legend`), curves.filter(({ name }) => name).map(({ kind, name }) => [kind, name]));
}

/** @param {string} id */
function forget(id) {
  drawn.get(id)?.plot.destroy();
  drawn.get(id)?.watched.disconnect();
  drawn.delete(id);
}

/**
 * @param {string} id
 * @param {string} words
 */
function empty(id, words) {
  forget(id);
  byId(id).hidden = true;
  byId(`${id}-legend`).replaceChildren();
  byId(`${id}-words`).textContent = words;
}

const mean = (/** @type {number[]} */ values) => values.reduce((sum, value) => sum + value, 0) / values.length;
