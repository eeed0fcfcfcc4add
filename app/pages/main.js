/** The playground: what a person chooses becomes a request, and its answer a picture. */

import { ForecastChart } from "./chart.js";
import { byId, el, legend, settled, told } from "./dom.js";
import { watch } from "./live.js";
import { part, picture } from "./picture.js";
import { quality } from "./quality.js";
import { inWords, readout, table } from "./readout.js";
import { rendered } from "./report.js";
import { ask, askJson, key, path, Trouble } from "./service.js";
import { curl, python, spread } from "./snippets.js";
import { histories, tableOf } from "./table.js";
import { lasting, seconds } from "./times.js";
import { hush, say } from "./trouble.js";

const LARGEST_FILE = 8 * 2 ** 20;
const SETTLES_MS = 160;

const page = {
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
/** @type {Map<string, any>} by digest: a version never changes */
const details = new Map();

const radio = (/** @type {string} */ name) => /** @type {any} */ (document.querySelector(`input[name="${name}"]:checked`))?.value;
const step = () => seconds(page.detail.spec.frequency) || 1;

// What there is

async function models() {
  try {
    const { content } = await askJson("models");
    if (!Array.isArray(content.models)) throw new Trouble("What came back is no list of models.");
    byId("key-card").hidden = !page.guarded;
    if (!page.detail) hush(byId("trouble"));
    const before = JSON.stringify(page.models);
    page.models = content.models;
    if (before === JSON.stringify(page.models) && page.detail) return;
    if (!content.models.some((/** @type {any} */ model) => model.versions.length)) {
      say(byId("trouble"), new Trouble("No model is published yet. “python -m training train” with a recipe publishes one, and this page finds it within seconds."));
      return;
    }
    const kept = page.detail ? wanted() : remembered();
    options(byId("model"), content.models.map((/** @type {any} */ { name }) => [name, name]), kept.model);
    versions(kept.version);
    comparisons(kept.compare);
    await chosen(kept);
  } catch (error) {
    // Once there is something to look at, the line about the service says enough of one look that failed.
    if (!page.detail || /** @type {any} */ (error).status === 401) trouble(error, byId("trouble"), models);
  }
}

/** @returns {Record<string, string>} */
const wanted = () => ({ model: byId("model").value, version: byId("version").value, compare: byId("compare").value });
const remembered = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

function remember() {
  const said = { ...wanted(), steps: byId("steps").value, levels: [...page.levels].join(","), target: page.target };
  const kept = Object.entries(said).filter(([, value]) => value !== "");
  try {
    history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
  } catch {
    // Some browsers count how often that happens; the next time will do.
  }
}

/**
 * @param {HTMLSelectElement} select
 * @param {[string, string][]} entries value and words
 * @param {string | undefined} value
 */
function options(select, entries, value) {
  select.replaceChildren(...entries.map(([of, words]) => el("option", { value: of }, words)));
  if (entries.some(([of]) => of === value)) select.value = String(value);
}

/** @param {string | undefined} value */
function versions(value) {
  const model = page.models?.find(({ name }) => name === byId("model").value);
  const aliases = Object.entries(model.aliases).map(([alias, number]) => [alias, `${alias} (${number})`]);
  const numbers = [...model.versions].reverse().map(({ version, state }) => [String(version), state === "ready" ? `${version}` : `${version}, ${state}`]);
  const usual = model.aliases.production === undefined ? [["latest", "latest"]] : [];
  options(byId("version"), /** @type {any} */ ([...usual, ...aliases, ...numbers]), value);
}

/** @param {string | undefined} value */
function comparisons(value) {
  const entries = (page.models ?? []).flatMap(({ name, versions: all }) => [...all].reverse()
    .filter(({ state }) => state === "ready").map(({ version }) => [`${name}/${version}`, `${name} ${version}`]));
  options(byId("compare"), /** @type {any} */ ([["", "nothing"], ...entries]), value);
}

/**
 * @param {string} model
 * @param {string} version
 * @param {AbortSignal} signal
 */
async function detailOf(model, version, signal) {
  const digest = page.models?.find(({ name }) => name === model)?.versions.find((/** @type {any} */ one) => String(one.version) === version)?.digest;
  if (digest && details.has(digest)) return details.get(digest);
  const { content } = await askJson(path("models", model, "versions", version), { signal });
  if (content.state === "ready" && content.spec) details.set(content.digest, content);
  return content;
}

/** Another model or version is to be shown. @param {Record<string, string>} kept */
async function chosen(kept = {}) {
  page.choosing?.abort();
  page.asking?.abort();
  const choosing = (page.choosing = new AbortController());
  try {
    const detail = await detailOf(byId("model").value, byId("version").value, choosing.signal);
    if (choosing.signal.aborted) return;
    if (!detail.spec) {
      const why = detail.reason ? `: ${detail.reason}` : "";
      throw new Trouble(`${detail.name} version ${detail.version} is ${detail.state}${why}.`);
    }
    const first = page.detail === null;
    const other = page.detail?.name !== detail.name;
    page.detail = detail;
    document.querySelectorAll(".controls > .card").forEach((card) => card.removeAttribute("inert"));
    hush(byId("trouble"));
    describe(kept.steps, first || other, kept.levels);
    targets(kept.target ?? page.target);
    await compared();
  } catch (error) {
    if (!choosing.signal.aborted) {
      trouble(error, byId("trouble"), () => chosen(kept));
      stale();
    }
  }
}

/**
 * What the version says of itself, beside the controls.
 * @param {string | undefined} steps
 * @param {boolean} anew
 * @param {string | undefined} levels
 */
function describe(steps, anew, levels) {
  const { spec } = page.detail;
  const every = lasting(step());
  byId("model-words").textContent =
    `${spec.architecture}: ${spec.window} rows, one each ${every}; forecasts ${spec.targets.join(", ")}, ${spec.horizon} ${spec.horizon === 1 ? "step" : "steps"} a pass.`;
  const known = spec.example.future?.length;
  const most = known ?? Math.max(48, 4 * spec.horizon, spec.intervals?.calibrated_steps ?? 0);
  byId("steps-slide").max = String(most);
  if (anew || steps) {
    const usual = Math.min(most, spec.metrics?.steps > 1 ? spec.metrics.steps : spec.example.steps);
    const wish = Number(steps) >= 1 ? Math.floor(Number(steps)) : usual;
    const value = String(known && radio("source") === "example" ? Math.min(wish, known) : wish);
    byId("steps").value = byId("steps-slide").value = value;
  }
  byId("example-words").textContent =
    `The one in the archive: ${spec.example.window.length} rows${spec.example.start ? ` from ${spec.example.start.slice(0, 16).replace("T", " ")} UTC` : ""}` +
    `${known ? `, and ${known} rows of what is known ahead` : ""}.`;
  const columns = spec.features.map((/** @type {any} */ one) => one.name + (one.unit ? ` (${one.unit})` : "")).join(", ");
  byId("csv-words").textContent =
    `Paste, drop or open a table with the columns ${spec.clock ? `${spec.time}, ` : ""}${columns}; ` +
    `${spec.shortest ? `${spec.shortest} to ${spec.window}` : spec.window} rows, of more the last ones count.` +
    `${spec.series ? ` “${spec.series}” tells series apart.` : ""}${spec.clock ? ` Times without an offset are of ${spec.timezone}.` : ""}`;
  offered(levels);
}

/** @param {string | undefined} levels */
function offered(levels) {
  const { intervals } = page.detail.spec;
  const offers = (intervals?.levels ?? []).map(String);
  if (levels !== undefined) page.levels = new Set(levels.split(",").filter(Boolean));
  byId("levels").hidden = !offers.length;
  byId("level-chips").replaceChildren(...offers.map((/** @type {string} */ level) => {
    const box = /** @type {HTMLInputElement} */ (el("input", { type: "checkbox", name: "level", value: level }));
    box.checked = page.levels.has(level);
    return el("label", { class: "chip" }, box, el("span", {}, `${level} %`));
  }));
}

/** @param {string} wish */
function targets(wish) {
  const { spec } = page.detail;
  page.target = spec.targets.includes(wish) ? wish : spec.targets[0];
  byId("targets").hidden = spec.targets.length < 2;
  byId("targets").replaceChildren(...spec.targets.map((/** @type {string} */ target) => {
    const input = /** @type {HTMLInputElement} */ (el("input", { type: "radio", name: "target", value: target }));
    input.checked = target === page.target;
    return el("label", { class: "chip" }, input, el("span", {}, target));
  }));
}

async function compared() {
  const [model, version] = byId("compare").value.split("/");
  page.otherDetail = null;
  page.otherAnswer = null;
  if (model) {
    try {
      page.otherDetail = await detailOf(model, version, /** @type {AbortController} */ (page.choosing).signal);
    } catch (error) {
      if (/** @type {any} */ (error).name === "AbortError") return;
      note(error);
    }
  }
  report();
  assess();
  await forecast();
}

// The request

/** @returns {{type: string, body: string, file: string}} */
function body() {
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
function query(model, version, spec) {
  const steps = Number(byId("steps").value);
  const said = new URLSearchParams({ model });
  if (version !== "latest") said.set("version", version);
  said.set("steps", String(steps));
  const calibrated = spec?.intervals && (spec.intervals.extrapolate || steps <= spec.intervals.calibrated_steps);
  const levels = (spec?.intervals?.levels ?? []).map(String).filter((/** @type {string} */ level) => page.levels.has(level));
  if (calibrated && levels.length) said.set("level", levels.join(","));
  return `forecast?${said.toString().replaceAll("%2C", ",")}`;
}

async function forecast() {
  page.asking?.abort();
  if (!page.detail) return;
  const { spec } = page.detail;
  const { intervals } = spec;
  const steps = Number(byId("steps").value);
  remember();
  request();
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
function note(error) {
  const words = byId("compare-words");
  words.hidden = !error;
  words.textContent = error ? `${byId("compare").value.replace("/", " ")} has no forecast of this: ${error.message}` : "";
  if (!error && page.otherAnswer && !page.otherAnswer.targets.includes(page.target)) {
    words.hidden = false;
    words.textContent = `${byId("compare").value.replace("/", " ")} does not forecast ${page.target}.`;
  }
}

// Trouble

/**
 * @param {any} error
 * @param {HTMLElement} box
 * @param {(() => void) | null} again
 */
function trouble(error, box, again) {
  if (!(error instanceof Trouble)) {
    console.error(error);
    error = new Trouble("The page itself has failed here; its console has the rest.");
  }
  if (error.status === 401) {
    page.guarded = true;
    byId("key-card").hidden = false;
    byId("key-words").textContent = key.get() ? "The service does not know this key." : "This service asks for a key, with the scopes “read” and “predict”.";
    byId("key-forget").hidden = !key.get();
    hush(box);
    byId("key").focus();
    return;
  }
  say(box, error, again);
}

/** What is shown is not the answer to what is asked. @param {string} words */
function stale(words = "") {
  byId("chart").removeAttribute("aria-busy");
  byId("answered").textContent = words || (page.answer ? "still the forecast before this request" : "");
  document.body.classList.toggle("stale", page.answer !== null);
}

// The picture

const chart = new ForecastChart(byId("chart"), {
  step: (at) => choose(at),
  row: (at) => {
    if (page.row === at) return;
    page.row = at;
    tell();
  },
});

function series() {
  const names = page.answer.series ?? page.answer.forecasts?.map((/** @type {any} */ _, /** @type {number} */ at) => `window ${at}`) ?? [];
  page.series = Math.min(page.series, Math.max(0, names.length - 1));
  const select = byId("series");
  select.hidden = names.length < 2;
  options(select, names.map((/** @type {string} */ name, /** @type {number} */ at) => [String(at), name]), String(page.series));
}

function draw() {
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
function choose(at) {
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

function numbers() {
  if (page.picture && byId("numbers").open) byId("numbers-table").replaceChildren(table(page.picture));
}

function assess() {
  if (page.detail) quality(page.detail.spec, page.otherDetail?.spec, page.target, radio("measure"));
}

// The request elsewhere, and the report

function request() {
  const given = body();
  const url = new URL(query(byId("model").value, byId("version").value, page.detail.spec), location.href.split("#")[0]).href;
  const said = { url, ...given, guarded: page.guarded };
  byId("snippet").textContent = radio("language") === "curl" ? curl(said) : python(said);
  const long = given.body.length > 65536 ? `Save the rows as ${given.file} beside it. ` : "";
  byId("snippet-words").textContent = long + (page.guarded ? "FORETELL_KEY is to hold the key." : "");
  byId("copied").textContent = "";
}

async function copy() {
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

let reported = "";
async function report() {
  if (!byId("report-part").open || !page.detail) return;
  const folder = path("models", page.detail.name, "versions", String(page.detail.version), "report");
  if (folder === reported) return;
  reported = folder;
  const box = byId("report");
  try {
    const text = await (await ask(folder)).text();
    if (reported === folder) box.replaceChildren(...rendered(text, folder));
  } catch (error) {
    if (reported !== folder) return;
    reported = "";
    const none = error instanceof Trouble && error.status === 404;
    box.replaceChildren(el("p", { class: "hint" }, none ? `${page.detail.name} ${page.detail.version} was published without a report.` : /** @type {Error} */ (error).message));
  }
}

// What a person does

const again = settled(forecast, SETTLES_MS);
const on = (/** @type {string} */ id, /** @type {string} */ type, /** @type {(event: any) => void} */ what) => byId(id).addEventListener(type, what);

on("model", "change", () => { versions(undefined); chosen(); });
on("version", "change", () => chosen());
on("compare", "change", () => { page.choosing ??= new AbortController(); compared(); });
on("steps-slide", "input", () => { byId("steps").value = byId("steps-slide").value; again(); });
on("steps", "input", () => { byId("steps-slide").value = byId("steps").value; again(); });
on("level-chips", "change", () => {
  document.querySelectorAll('input[name="level"]').forEach((/** @type {any} */ box) => page.levels[box.checked ? "add" : "delete"](box.value));
  again();
});
on("targets", "change", () => { page.target = radio("target"); remember(); draw(); assess(); note(null); });
on("series", "change", () => { page.series = Number(byId("series").value); draw(); });
on("spans", "change", () => { chart.near = radio("span") === "near"; chart.rebuild(); });
on("measures", "change", assess);
on("numbers", "toggle", numbers);
on("report-part", "toggle", report);
on("copy", "click", copy);
document.querySelectorAll('input[name="language"]').forEach((input) => input.addEventListener("change", () => page.detail && request()));
document.querySelectorAll('input[name="source"]').forEach((input) => input.addEventListener("change", source));
on("csv", "input", settled(forecast, 400));
on("csv-example", "click", () => { byId("csv").value = tableOf(page.detail.spec, step()); forecast(); });
on("csv-file", "change", async () => { await take(byId("csv-file").files[0]); byId("csv-file").value = ""; });

function source() {
  const own = radio("source") === "csv";
  byId("csv-part").hidden = !own;
  byId("example-words").hidden = own;
  hush(byId("data-trouble"));
  forecast();
}

/** @param {File | undefined} file */
async function take(file) {
  if (!file) return;
  /** @type {any} */ (document.querySelector('input[name="source"][value="csv"]')).checked = true;
  byId("csv-part").hidden = false;
  byId("example-words").hidden = true;
  if (file.size > LARGEST_FILE) {
    trouble(new Trouble(`${file.name} has ${told(file.size / 2 ** 20)} MiB. The page takes up to ${LARGEST_FILE / 2 ** 20} MiB; only the last rows count.`), byId("data-trouble"), null);
    byId("data-trouble").focus();
    return;
  }
  byId("csv").value = await file.text();
  page.taken = true;
  await forecast();
  page.taken = false;
}

on("chart", "keydown", (event) => {
  const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity };
  const move = /** @type {any} */ (moves)[event.key];
  if (move === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  choose(page.step + move);
});

on("controls", "submit", (event) => {
  event.preventDefault();
  if (!byId("key-card").hidden && byId("key").value) {
    key.set(byId("key").value.trim());
    byId("key").value = "";
    byId("key-words").textContent = "In use.";
    byId("key-forget").hidden = false;
    page.models = null;
    models();
    live.look();
  }
});
on("key-forget", "click", () => { key.set(""); location.reload(); });

let within = 0;
addEventListener("dragenter", (event) => { if (event.dataTransfer?.types.includes("Files")) { within += 1; byId("drop").hidden = false; } });
addEventListener("dragleave", () => { within = Math.max(0, within - 1); byId("drop").hidden = within === 0; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  within = 0;
  byId("drop").hidden = true;
  take(event.dataTransfer?.files[0]);
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { chart.rebuild(); assess(); });

const narrow = matchMedia("(max-width: 700px)").matches;
chart.near = narrow;
/** @type {any} */ (document.querySelector(`input[name="span"][value="${narrow ? "near" : "all"}"]`)).checked = true;

byId("key-card").hidden = !page.guarded;
byId("key-forget").hidden = !page.guarded;
if (page.guarded) byId("key-words").textContent = "In use.";

let ticks = 0;
const live = watch({
  changed: (ready) => { if (ready && !page.detail) models(); },
  // What is published meanwhile can be chosen; a guarded service is not asked without a key.
  tick: () => { ticks += 1; if (ticks % 6 === 0 && page.detail) models(); },
});
models();
