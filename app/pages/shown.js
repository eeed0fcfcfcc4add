/** The answer as a picture, a legend, a table and words. */

import { ForecastChart } from "./chart.js";
import { byId, el, legend, options } from "./dom.js";
import { part, picture } from "./picture.js";
import { quality } from "./quality.js";
import { inWords, readout, table } from "./readout.js";
import { page, radio, step } from "./state.js";

export const chart = new ForecastChart(byId("chart"), {
  step: (at) => choose(at),
  row: (at) => {
    if (page.row === at) return;
    page.row = at;
    tell();
  },
});

/** Which of the answer's series there are to choose from. */
export function series() {
  const names = page.answer.series ?? page.answer.forecasts?.map((/** @type {any} */ _, /** @type {number} */ at) => `window ${at}`) ?? [];
  page.series = Math.min(page.series, Math.max(0, names.length - 1));
  const select = byId("series");
  select.hidden = names.length < 2;
  options(select, names.map((/** @type {string} */ name, /** @type {number} */ at) => [String(at), name]), String(page.series));
}

export function draw() {
  // After a choice that came to nothing it is still of another model.
  if (page.answer?.model !== page.detail.name || !page.answer.targets.includes(page.target)) return;
  document.body.classList.remove("stale", "empty");
  const own = part(page.answer, page.series);
  const other = page.otherAnswer && part(page.otherAnswer, page.series);
  const name = own.series?.[page.series];
  const past = page.histories.find((history) => history.name === name) ?? page.histories[page.series];
  const shown = (page.picture = picture(page.detail.spec, step(), past, own, other, page.target));
  chart.show(shown);
  page.step = chart.step;
  byId("chart-title").textContent = `${shown.target}${shown.unit ? `, ${shown.unit}` : ""}`;
  byId("chart").setAttribute("aria-label", `Step of the forecast of ${shown.target}`);
  byId("chart").setAttribute("aria-valuemax", String(shown.line.forecast.length));
  /** @type {[string, string][]} */
  const entries = [["past", "history"], ["ahead", shown.line.name]];
  if (shown.other) entries.push(["other dashed", shown.other.name]);
  shown.line.bands.forEach(({ level }, index) => entries.push([`band band-${Math.min(index, 3)}`, `${level} %`]));
  if (shown.other?.bands.length) entries.push(["edge", `${shown.other.name}, ${shown.other.bands[0].level} %`]);
  if (shown.attention) entries.push(["attention", "attention of the step"]);
  legend(byId("legend"), entries);
  if (shown.timed) byId("legend").append(el("li", { class: "zone" }, `times in ${shown.zone}`));
  choose(page.step);
  numbers();
}

/** @param {number} at step from 0 */
export function choose(at) {
  const shown = page.picture;
  if (!shown) return;
  page.step = Math.max(0, Math.min(at, shown.line.forecast.length - 1));
  page.row = null;
  chart.choose(page.step);
  const host = byId("chart");
  host.setAttribute("aria-valuenow", String(page.step + 1));
  host.setAttribute("aria-valuetext", inWords(shown, page.step));
  tell();
}

function tell() {
  if (page.picture) readout(byId("readout"), page.picture, page.step, page.row);
}

export function numbers() {
  if (page.picture && byId("numbers").open) byId("numbers-table").replaceChildren(table(page.picture));
}

export function assess() {
  if (page.detail) quality(page.detail.spec, page.otherDetail?.spec, page.target, radio("measure"));
}
