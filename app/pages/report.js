/** A report in Markdown, as training writes it, as elements: headings, lists, tables, pictures and words. */

import { byId, el } from "./dom.js";
import { ask, path, Trouble } from "./service.js";
import { page } from "./state.js";

let reported = "";

/** Shows that of the version, once it is opened. */
export async function report() {
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

/**
 * @param {string} text
 * @param {string} folder of its pictures, relative to the page
 * @returns {HTMLElement[]}
 */
function rendered(text, folder) {
  return text.split(/\n{2,}/).map((block) => block.trim()).filter(Boolean).map((block) => {
    const lines = block.split("\n");
    const heading = /^(#{1,4}) (.*)$/.exec(block);
    const picture = /^!\[([^\]]*)\]\(([\w.-]+)\)$/.exec(block);
    if (heading) return el(`h${Math.min(heading[1].length + 2, 6)}`, {}, ...inline(heading[2]));
    if (picture) return image(picture[1], `${folder}/${encodeURIComponent(picture[2])}`);
    if (lines.every((line) => line.startsWith("- "))) return el("ul", {}, ...lines.map((line) => el("li", {}, ...inline(line.slice(2)))));
    if (lines.every((line) => line.startsWith("|"))) return table(lines);
    return el("p", {}, ...inline(lines.join(" ")));
  });
}

/** @param {string[]} lines */
function table(lines) {
  const rows = lines.map((line) => line.replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim()));
  const right = (rows[1] ?? []).map((cell) => cell.endsWith(":"));
  const row = (/** @type {string} */ tag, /** @type {string[]} */ cells) =>
    el("tr", {}, ...cells.map((cell, index) => el(tag, right[index] ? { class: "number" } : {}, ...inline(cell))));
  const body = rows.slice(2).map((cells) => row("td", cells));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": rows[0].join(", ") },
    el("table", {}, el("thead", {}, row("th", rows[0])), el("tbody", {}, ...body)));
}

/**
 * `code` and **bold**; all else as it stands.
 * @param {string} text
 * @returns {(Node | string)[]}
 */
function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).filter(Boolean).map((part) => {
    if (part.startsWith("`")) return el("code", {}, part.slice(1, -1));
    return part.startsWith("**") ? el("strong", {}, part.slice(2, -2)) : part;
  });
}

/**
 * Fetched and not linked, since the service may want a key for it.
 * @param {string} name
 * @param {string} path
 */
function image(name, path) {
  const shown = /** @type {HTMLImageElement} */ (el("img", { alt: name }));
  const figure = el("figure", { class: "plate" }, shown);
  ask(path).then((response) => response.blob()).then((blob) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => { shown.src = String(reader.result); });
    reader.readAsDataURL(blob);
  }).catch(() => figure.replaceChildren(el("p", { class: "hint" }, `The picture “${name}” is not there.`)));
  return figure;
}
