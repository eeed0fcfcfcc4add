/** Asks for the forecast that the choices mean, and shows what came of it. */

import { byId, told } from "./dom.js";
import { body, query, snippet } from "./request.js";
import { askJson, Trouble } from "./service.js";
import { draw, series } from "./shown.js";
import { page, remember, step } from "./state.js";
import { histories } from "./table.js";
import { lasting } from "./times.js";
import { hush, trouble } from "./trouble.js";

export async function forecast() {
  page.asking?.abort();
  if (!page.detail) return;
  const { spec } = page.detail;
  const { intervals } = spec;
  const steps = Number(byId("steps").value);
  remember();
  snippet();
  byId("levels-words").textContent = !intervals ? "This version has no prediction intervals."
    : steps > intervals.calibrated_steps && !intervals.extrapolate ? `Calibrated for ${intervals.calibrated_steps} steps, so there are none for ${steps}.` : "";
  byId("steps-words").textContent = Number.isInteger(steps) && steps > 0 ? `${lasting(steps * step())} ahead` : "";
  const given = body();
  if (given.type === "text/csv" && given.body.trim() === "") {
    hush(byId("data-trouble"));
    stale("No rows yet: paste, drop or open a CSV.");
    return;
  }
  const asking = (page.asking = new AbortController());
  const post = (/** @type {string} */ url) => askJson(url, { method: "POST", body: given.body, headers: { "Content-Type": given.type, Accept: "application/json" }, signal: asking.signal });
  byId("chart").setAttribute("aria-busy", "true");
  const other = page.otherDetail?.spec;
  const [own, second] = await Promise.allSettled([
    post(query(byId("model").value, byId("version").value, spec)),
    other ? post(query(other.name, String(other.version), other)) : Promise.resolve(null),
  ]);
  if (asking.signal.aborted) return;
  byId("chart").removeAttribute("aria-busy");
  if (own.status === "rejected") {
    refused(own.reason);
    return;
  }
  hush(byId("data-trouble"));
  hush(byId("trouble"));
  try {
    const { content, headers } = own.value;
    if (!Array.isArray(content.forecast ?? content.forecasts)) throw new Trouble("What came back is no forecast.");
    page.answer = content;
    page.otherAnswer = second.status === "fulfilled" ? second.value?.content ?? null : null;
    page.histories = given.type === "text/csv" ? histories(given.body, spec, step()) : [exampleHistory(spec)];
    answered(content, headers);
    note(second.status === "rejected" ? second.reason : null);
    series();
    draw();
  } catch (error) {
    trouble(error, byId("trouble"), forecast);
  }
}

/** @param {any} spec */
function exampleHistory(spec) {
  const dynamic = spec.features.filter((/** @type {any} */ one) => one.role !== "static");
  return { name: null, columns: new Map(dynamic.map((/** @type {any} */ one, /** @type {number} */ at) => [one.name, spec.example.window.map((/** @type {any} */ row) => row[at])])) };
}

/**
 * @param {any} content
 * @param {Headers} headers
 */
function answered(content, headers) {
  const inference = /inference;dur=([\d.]+)/.exec(headers.get("server-timing") ?? "")?.[1];
  const how = headers.get("x-cache") === "hit" ? "from the cache" : inference ? `${told(Number(inference))} ms on the device` : "";
  byId("answered").textContent = [`${content.model} ${content.version}`, `${content.steps} ${content.steps === 1 ? "step" : "steps"}`, how].filter(Boolean).join(" · ");
}

/** A forecast was refused: what is wrong with the rows stands beside them. @param {any} error */
function refused(error) {
  const aboutRows = error instanceof Trouble && (error.places.some(({ place }) => !place.startsWith("query.")) || [400, 408, 413, 415].includes(error.status));
  hush(byId(aboutRows ? "trouble" : "data-trouble"));
  const box = byId(aboutRows ? "data-trouble" : "trouble");
  trouble(error, box, aboutRows ? null : forecast);
  if (aboutRows) {
    byId("csv").setAttribute("aria-invalid", "true");
    if (page.taken) box.focus();
  }
  stale();
}

/** Of the version to compare with. @param {any} error */
export function note(error) {
  const words = byId("compare-words");
  words.hidden = !error;
  words.textContent = error ? `${byId("compare").value.replace("/", " ")} has no forecast of this: ${error.message}` : "";
  if (!error && page.otherAnswer && !page.otherAnswer.targets.includes(page.target)) {
    words.hidden = false;
    words.textContent = `${byId("compare").value.replace("/", " ")} does not forecast ${page.target}.`;
  }
}

/** What is shown is not the answer to what is asked. @param {string} words */
export function stale(words = "") {
  byId("chart").removeAttribute("aria-busy");
  byId("answered").textContent = words || (page.answer ? "still the forecast before this request" : "");
  document.body.classList.toggle("stale", page.answer !== null);
}
