/** The forecast's chart: history, forecast, bands, another version, and where the chosen step looked. */

import { colour, faint, told } from "./dom.js";
import { looked } from "./picture.js";

/** @typedef {import("./picture.js").Picture} Picture */

const uPlot = /** @type {any} */ (globalThis).uPlot;
const PART_FOR_ATTENTION = 0.3;
const FONT = "12px system-ui, sans-serif";

/**
 * How all charts here look: their axes, and what is not theirs.
 * @param {{unit?: string, zone?: string, timed?: boolean, x?: string}} what
 */
export function looks({ unit = "", zone = "UTC", timed = false, x = "" }) {
  const axis = { stroke: colour("muted"), font: FONT, labelFont: FONT, labelSize: 20, ticks: { stroke: colour("line"), width: 1, size: 5 }, grid: { stroke: colour("line"), width: 1 } };
  return {
    legend: { show: false },
    tzDate: (/** @type {number} */ at) => (timed ? uPlot.tzDate(new Date(at * 1000), zone) : new Date(at * 1000)),
    scales: { x: { time: timed } },
    axes: [
      { ...axis, label: x || null, size: timed ? 44 : 26, space: 64, ...(timed ? { values: TIMES } : { incrs: WHOLE }) },
      { ...axis, label: unit, size: 46, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map((tick) => (tick === null ? "" : told(tick))) },
    ],
  };
}

const WHOLE = [1, 2, 3, 4, 6, 12, 24, 48, 96, 192, 500, 1000, 2000, 5000];
const DAY = "{D} {MMM}";
// By least distance of the ticks: what each says, and what it adds where year, month or day are new.
const TIMES = [
  [31536000, "{YYYY}", null, null, null, null, null, null, 1],
  [2419200, "{MMM}", "\n{YYYY}", null, null, null, null, null, 1],
  [86400, DAY, "\n{YYYY}", null, null, null, null, null, 1],
  [60, "{HH}:{mm}", `\n${DAY}`, null, `\n${DAY}`, null, null, null, 1],
  [0.001, "{HH}:{mm}:{ss}", `\n${DAY}`, null, `\n${DAY}`, null, null, null, 1],
];

export class ForecastChart {
  /**
   * @param {HTMLElement} host
   * @param {{step: (step: number) => void, row: (index: number | null) => void}} listener
   */
  constructor(host, listener) {
    this.host = host;
    this.listener = listener;
    /** @type {Picture | null} */
    this.picture = null;
    this.step = 0;
    this.near = false;
    /** @type {any} */
    this.plot = null;
    this.before = "";
    /** Below it there is attention, and no value. */
    this.lowest = -Infinity;
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(host);
    host.addEventListener("pointermove", (event) => event.pointerType !== "mouse" && this.touched(event));
    host.addEventListener("pointerdown", (event) => event.pointerType !== "mouse" && this.touched(event));
  }

  size() {
    return { width: Math.max(this.host.clientWidth, 200), height: this.host.clientHeight };
  }

  /** @param {Picture} picture */
  show(picture) {
    this.picture = picture;
    this.step = Math.min(this.step, picture.line.forecast.length - 1);
    const data = rowsOf(picture);
    const kind = JSON.stringify([picture.unit, picture.timed, picture.zone, picture.line.bands.map((band) => band.level), picture.other?.bands.length ?? -1]);
    if (this.plot && kind === this.before) this.plot.setData(data, false);
    else this.build(data);
    this.before = kind;
    this.focusOn();
  }

  /** Draws it anew, in the colours of now. */
  rebuild() {
    if (!this.picture) return;
    this.build(rowsOf(this.picture));
    this.focusOn();
  }

  /** @param {number} step from 0 */
  choose(step) {
    this.step = step;
    this.plot?.redraw(false);
  }

  /** Whole window, or the forecast and as much again before it. */
  focusOn() {
    const { x, rows, line } = /** @type {Picture} */ (this.picture);
    const from = this.near ? Math.max(0, rows - Math.max(2 * line.forecast.length, 12)) : 0;
    // A little room on both sides, so that the first and the last bar are whole.
    const room = (x[1] - x[0]) / 2 || 0.5;
    this.plot.setScale("x", { min: x[from] - room, max: x[x.length - 1] + room });
  }

  /** @param {any[]} data */
  build(data) {
    this.plot?.destroy();
    const picture = /** @type {Picture} */ (this.picture);
    const { series, bands } = this.lines(picture);
    const common = looks({ unit: picture.unit, zone: picture.zone, timed: picture.timed, x: picture.timed ? "" : "rows before, steps ahead" });
    const values = (/** @type {any} */ _, /** @type {number[]} */ ticks) => {
      const least = this.lowest - (ticks.length > 1 ? ticks[1] - ticks[0] : 0);
      return ticks.map((tick) => (tick > least ? tick : null));
    };
    Object.assign(common.axes[1], { filter: values, grid: { ...common.axes[1].grid, filter: values } });
    this.plot = new uPlot({
      ...common, ...this.size(), series, bands, padding: [10, 14, 0, 0],
      scales: { ...common.scales, y: { range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => this.range(low, high) } },
      cursor: { y: false, points: { show: false }, drag: { x: true, y: false, dist: 8 }, bind: { dblclick: () => () => this.focusOn() } },
      hooks: {
        drawAxes: [(/** @type {any} */ plot) => this.drawAttention(plot)],
        draw: [(/** @type {any} */ plot) => this.drawStep(plot)],
        setCursor: [(/** @type {any} */ plot) => this.pointed(plot.cursor.idx, plot.cursor.left)],
      },
    }, data, this.host);
  }

  /** @param {Picture} picture */
  lines(picture) {
    const series = [{}];
    /** @type {any[]} */
    const bands = [];
    const none = { points: { show: false }, width: 0, stroke: "transparent" };
    const band = (/** @type {string} */ fill) => {
      series.push(none, none);
      bands.push({ series: [series.length - 1, series.length - 2], fill });
    };
    picture.line.bands.forEach((_, index) => band(faint("ahead", 0.14 + 0.1 * index)));
    if (picture.other) {
      const edge = { points: { show: false }, width: 1, dash: [2, 3], stroke: faint("other", 0.75) };
      picture.other.bands.slice(0, 1).forEach(() => series.push(edge, edge));
    }
    const dots = { show: (/** @type {any} */ plot) => plot.bbox.width / devicePixelRatio / Math.max(1, plot.series[0].idxs[1] - plot.series[0].idxs[0]) > 9, size: 5 };
    series.push({ stroke: colour("past"), width: 1.75, points: { ...dots, fill: colour("past") }, spanGaps: false });
    if (picture.other) series.push({ stroke: colour("other"), width: 2, dash: [7, 4], points: { show: false } });
    series.push({ stroke: colour("ahead"), width: 2.5, points: { ...dots, fill: colour("ahead") } });
    return { series, bands };
  }

  /**
   * Room below for the attention, where there is any.
   * @param {number} low
   * @param {number} high
   */
  range(low, high) {
    if (low === null || high === null) return [0, 1];
    this.lowest = low;
    const size = high - low || Math.abs(high) * 0.1 || 1;
    const below = this.picture?.attention ? size * (PART_FOR_ATTENTION / (1 - PART_FOR_ATTENTION)) : size * 0.06;
    return [low - below, high + size * 0.06];
  }

  /** @param {any} plot */
  drawAttention(plot) {
    const picture = /** @type {Picture} */ (this.picture);
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    const at = (/** @type {number} */ value) => plot.valToPos(value, "x", true);
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    const found = looked(picture, this.step);
    if (found) {
      const heaviest = Math.max(...found.weights);
      const wide = Math.abs(at(picture.x[1]) - at(picture.x[0]));
      const bar = Math.max(1, wide * 0.82);
      const high = bbox.height * (PART_FOR_ATTENTION - 0.05);
      found.weights.forEach((weight, index) => {
        const x = picture.x[found.first + index];
        if (x === undefined) return;
        const share = heaviest > 0 ? weight / heaviest : 0;
        ctx.fillStyle = faint("attention", 0.3 + 0.65 * share);
        ctx.fillRect(at(x) - bar / 2, bbox.top + bbox.height - share * high, bar, share * high);
      });
    }
    if (picture.rows > 0) {
      // Where what is known ends.
      const x = (at(picture.x[picture.rows - 1]) + at(picture.x[picture.rows])) / 2;
      ctx.strokeStyle = colour("muted");
      ctx.setLineDash([3 * ratio, 4 * ratio]);
      ctx.lineWidth = ratio;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  /** @param {any} plot */
  drawStep(plot) {
    const picture = /** @type {Picture} */ (this.picture);
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    const x = plot.valToPos(picture.x[picture.rows + this.step], "x", true);
    if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) return;
    ctx.save();
    ctx.strokeStyle = faint("ahead", 0.55);
    ctx.lineWidth = ratio;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    const dot = (/** @type {number} */ value, /** @type {string} */ name) => {
      ctx.beginPath();
      ctx.arc(x, plot.valToPos(value, "y", true), 5 * ratio, 0, 2 * Math.PI);
      ctx.fillStyle = colour(name);
      ctx.fill();
      ctx.strokeStyle = colour("panel");
      ctx.lineWidth = 2 * ratio;
      ctx.stroke();
    };
    if (picture.other) dot(picture.other.forecast[this.step], "other");
    dot(picture.line.forecast[this.step], "ahead");
    ctx.restore();
  }

  /**
   * @param {number | null | undefined} index
   * @param {number} left
   */
  pointed(index, left) {
    const picture = this.picture;
    if (!picture || index === null || index === undefined || left < 0) {
      this.listener.row(null);
    } else if (index >= picture.rows) {
      this.listener.row(null);
      if (index - picture.rows !== this.step) this.listener.step(index - picture.rows);
    } else this.listener.row(index);
  }

  /** @param {PointerEvent} event */
  touched(event) {
    const left = event.clientX - this.plot.over.getBoundingClientRect().left;
    this.pointed(this.plot.posToIdx(left), left);
  }
}

/**
 * Columns for uPlot in the order of `lines`. Lines begin at the last known value, so that they do not hang in the air.
 * @param {Picture} picture
 */
function rowsOf(picture) {
  const { rows, history, line, other } = picture;
  const last = rows > 0 ? history[rows - 1] : null;
  const ahead = (/** @type {(number | null)[]} */ values) =>
    [...new Array(Math.max(0, rows - 1)).fill(null), ...(rows > 0 ? [last] : []), ...values];
  const both = (/** @type {import("./picture.js").Band} */ band) => [ahead(band.lower), ahead(band.upper)];
  return [
    picture.x,
    ...line.bands.flatMap(both),
    ...(other?.bands.slice(0, 1).flatMap(both) ?? []),
    [...history, ...new Array(line.forecast.length).fill(null)],
    ...(other ? [ahead(other.forecast)] : []),
    ahead(line.forecast),
  ];
}
