/** What went wrong, as a person is told it: in a box beside what it is about. */

import { byId, el } from "./dom.js";
import { key, Trouble } from "./service.js";
import { page } from "./state.js";
import { lasting } from "./times.js";

/**
 * The same of whatever was thrown; of a key that is wanted beside where one is given.
 * @param {any} error
 * @param {HTMLElement} box
 * @param {(() => void) | null} again
 */
export function trouble(error, box, again) {
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

/**
 * Shows it in a box, with its places and a way to try again where there is one.
 * @param {HTMLElement} box
 * @param {Trouble} error
 * @param {(() => void) | null} again
 */
export function say(box, error, again = null) {
  const places = error.places.slice(0, 6).map(({ place, message }) => {
    const row = /^csv row (\d+)/.exec(place)?.[1];
    const name = place.replace(/^query\./, "");
    const link = row ? el("button", { type: "button", class: "link", "data-row": row }, name) : el("strong", {}, name);
    return el("li", {}, link, `: ${message}`);
  });
  const left = error.places.length - places.length;
  if (left > 0) places.push(el("li", {}, `and ${left} more`));
  const wait = error.retryAfter === null ? "" : ` It may be asked again in ${lasting(error.retryAfter)}.`;
  const words = places.length ? "The request was refused." : error.message + wait;
  const button = again ? [el("button", { type: "button", class: "again" }, "Try again")] : [];
  box.replaceChildren(el("p", {}, words), ...(places.length ? [el("ul", {}, ...places)] : []), ...button);
  if (error.id) box.append(el("p", { class: "hint" }, `Request ${error.id}`));
  box.querySelector(".again")?.addEventListener("click", () => again?.());
  box.querySelectorAll("[data-row]").forEach((link) => link.addEventListener("click", () => goTo(Number(link.getAttribute("data-row")))));
  box.hidden = false;
}

/** @param {HTMLElement} box */
export function hush(box) {
  box.hidden = true;
  box.replaceChildren();
  if (box.id === "data-trouble") byId("csv").removeAttribute("aria-invalid");
}

/** Selects a row of the table; rows count from 1, the first below the header, and empty lines are none. @param {number} row */
function goTo(row) {
  const area = byId("csv");
  let at = 0, seen = -1;
  for (const line of area.value.split("\n")) {
    if (line.trim() !== "") seen += 1;
    if (seen === row && line.trim() !== "") {
      area.focus();
      area.setSelectionRange(at, at + line.length);
      area.scrollTop = (area.scrollHeight / area.value.split("\n").length) * (row - 3);
      return;
    }
    at += line.length + 1;
  }
}
