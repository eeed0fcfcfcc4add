/** Reads a CSV as far as drawing its history needs; what is wrong with it the service says. */

import { instant } from "./times.js";

/** @typedef {{name: string | null, columns: Map<string, (number | null)[]>}} History the last rows, on an even grid */

/**
 * Lines as cells; quotes as in RFC 4180.
 * @param {string} text
 * @returns {string[][]}
 */
export function cells(text) {
  const rows = [];
  let row = [], cell = "", quoted = false;
  for (let at = 0; at <= text.length; at += 1) {
    const sign = text[at];
    if (quoted) {
      if (sign === undefined) quoted = false;
      else if (sign !== '"') { cell += sign; continue; }
      else if (text[at + 1] === '"') { cell += '"'; at += 1; continue; }
      else { quoted = false; continue; }
    } else if (sign === '"' && cell === "") { quoted = true; continue; }
    if (sign === "," ) { row.push(cell); cell = ""; }
    else if (sign === "\n" || sign === "\r" || sign === undefined) {
      row.push(cell);
      if (row.length > 1 || row[0].trim() !== "") rows.push(row);
      row = []; cell = "";
    } else cell += sign;
  }
  return rows;
}

/**
 * The windows of a table, one a series, or none where it makes no sense.
 * @param {string} text
 * @param {any} spec
 * @param {number} step seconds between rows
 * @returns {History[]}
 */
export function histories(text, spec, step) {
  const [header, ...rows] = cells(text.replace(/^\ufeff/, ""));
  if (!header) return [];
  const names = header.map((name) => name.trim());
  const seriesAt = spec.series ? names.indexOf(spec.series) : -1;
  /** @type {Map<string | null, string[][]>} */
  const grouped = new Map();
  for (const row of rows) {
    const name = seriesAt < 0 ? null : (row[seriesAt] ?? "").trim();
    grouped.set(name, [...(grouped.get(name) ?? []), row].slice(-20000));
  }
  return [...grouped].map(([name, own]) => ({ name, columns: columns(names, own, spec, step) }));
}

/**
 * @param {string[]} names
 * @param {string[][]} rows
 * @param {any} spec
 * @param {number} step
 */
function columns(names, rows, spec, step) {
  const known = spec.features.filter((/** @type {any} */ one) => one.role !== "future" && one.role !== "static");
  const places = known.map((/** @type {any} */ one) => names.indexOf(one.name));
  let last = rows.length - 1;
  // Rows behind the last one with any of these are the known future.
  while (last >= 0 && places.every((/** @type {number} */ at) => at < 0 || number(rows[last][at]) === null)) last -= 1;
  const past = rows.slice(0, last + 1);
  const timeAt = names.indexOf(spec.time);
  const times = past.map((row) => (timeAt < 0 ? NaN : instant(row[timeAt] ?? "")));
  const timed = times.length > 0 && times.every(Number.isFinite);
  const back = past.map((_, index) => (timed ? Math.round((times[last] - times[index]) / step) : last - index));
  const length = Math.min(spec.window, Math.max(0, ...back.slice(-spec.window).map((rowsBack) => rowsBack + 1)));
  const found = new Map();
  known.forEach((/** @type {any} */ one, /** @type {number} */ index) => {
    const values = new Array(length).fill(null);
    past.forEach((row, at) => {
      if (back[at] >= 0 && back[at] < length) values[length - 1 - back[at]] = number(row[places[index]]);
    });
    found.set(one.name, values);
  });
  return found;
}

/**
 * @param {string | undefined} cell
 * @returns {number | null}
 */
function number(cell) {
  const value = cell === undefined || cell.trim() === "" ? NaN : Number(cell);
  return Number.isFinite(value) ? value : null;
}

/**
 * An example as a table that the service takes: its times, its window, what is known ahead.
 * @param {any} spec
 * @param {number} step seconds between rows
 */
export function tableOf(spec, step) {
  const { window, start, future } = spec.example;
  const dynamic = spec.features.filter((/** @type {any} */ one) => one.role !== "static");
  const ahead = dynamic.filter((/** @type {any} */ one) => one.role === "future");
  const fixed = spec.features.filter((/** @type {any} */ one) => one.role === "static");
  const constants = (spec.example.static ?? []).map(String);
  const header = [...(start ? [spec.time] : []), ...[...dynamic, ...fixed].map((/** @type {any} */ one) => quoted(one.name))];
  const began = start ? Date.parse(start) : 0;
  const time = (/** @type {number} */ row) =>
    start ? [new Date(began + row * step * 1000).toISOString().replace(/\.000Z$/, "Z")] : [];
  const lines = [header.join(",")];
  window.forEach((/** @type {(number | null)[]} */ row, /** @type {number} */ index) => {
    lines.push([...time(index), ...row.map((value) => value ?? ""), ...constants].join(","));
  });
  (future ?? []).forEach((/** @type {number[]} */ row, /** @type {number} */ index) => {
    const known = dynamic.map((/** @type {any} */ one) => (one.role === "future" ? row[ahead.indexOf(one)] : ""));
    lines.push([...time(window.length + index), ...known, ...constants].join(","));
  });
  return `${lines.join("\n")}\n`;
}

const quoted = (/** @type {string} */ name) => (/[",\n]/.test(name) ? `"${name.replaceAll('"', '""')}"` : name);
