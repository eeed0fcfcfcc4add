/** What the other files need of the document. Text is only ever put in as text. */

/**
 * The element of that id, which the page has.
 * @param {string} id
 * @returns {any}
 */
export const byId = (id) => document.getElementById(id);

/**
 * A new element; `class`, `data-…`, `aria-…` and such are attributes, what is left over children.
 * @param {string} tag
 * @param {Record<string, string>} attributes
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/**
 * What a select offers, and which of it is chosen where it is there.
 * @param {HTMLSelectElement} select
 * @param {[string, string][]} entries value and words
 * @param {string | undefined} value
 */
export function options(select, entries, value) {
  select.replaceChildren(...entries.map(([of, words]) => el("option", { value: of }, words)));
  if (entries.some(([of]) => of === value)) select.value = String(value);
}

/**
 * Calls `what` once nothing has asked for it for so long.
 * @param {() => void} what
 * @param {number} ms
 */
export function settled(what, ms) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(what, ms);
  };
}

/**
 * A colour of the style sheet.
 * @param {string} name
 */
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/**
 * The same with an opacity.
 * @param {string} name
 * @param {number} opacity
 */
export const faint = (name, opacity) =>
  colour(name) + Math.round(opacity * 255).toString(16).padStart(2, "0");

/**
 * Entries of a legend: what they look like, what they are.
 * @param {HTMLElement} list
 * @param {[string, string][]} entries
 */
export function legend(list, entries) {
  list.replaceChildren(...entries.map(([kind, words]) => el("li", {}, el("i", { class: kind }), words)));
}

/**
 * A number for people: as many digits as tell something.
 * @param {number | null | undefined} value
 * @returns {string}
 */
export function told(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e7 || size < 1e-3)) return value.toExponential(2);
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 3;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

/** A share for people. @param {number} share */
export const percent = (share) => `${(share * 100).toFixed(1)} %`;
