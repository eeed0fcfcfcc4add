/** The playground: what a person chooses becomes a request, and its answer a picture. */

import { chosen, compared, models, versions } from "./choices.js";
import { byId, settled, told } from "./dom.js";
import { forecast, note } from "./forecast.js";
import { watch } from "./live.js";
import { report } from "./report.js";
import { copy, snippet } from "./request.js";
import { key, Trouble } from "./service.js";
import { assess, chart, choose, draw, numbers } from "./shown.js";
import { page, radio, remember, step } from "./state.js";
import { tableOf } from "./table.js";
import { hush, trouble } from "./trouble.js";

const LARGEST_FILE = 8 * 2 ** 20;
const SETTLES_MS = 160;

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
document.querySelectorAll('input[name="language"]').forEach((input) => input.addEventListener("change", () => page.detail && snippet()));
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
