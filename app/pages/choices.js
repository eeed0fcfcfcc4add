/** What there is to choose from, and what comes with a choice. */

import { byId, el, options } from "./dom.js";
import { forecast, note, stale } from "./forecast.js";
import { report } from "./report.js";
import { askJson, path, Trouble } from "./service.js";
import { assess } from "./shown.js";
import { page, radio, remembered, step, wanted } from "./state.js";
import { lasting } from "./times.js";
import { hush, say, trouble } from "./trouble.js";

/** @type {Map<string, any>} by digest: a version never changes */
const details = new Map();

/** Looks what there is, and chooses what was chosen before. */
export async function models() {
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

/** @param {string | undefined} value */
export function versions(value) {
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
export async function chosen(kept = {}) {
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

/** Another version is to be compared with. */
export async function compared() {
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
