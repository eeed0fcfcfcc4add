/** Durations and times, as the service writes them, for people. */

// The service writes 365 days as a year, and never a month.
const PARTS = { Y: 31536000, W: 604800, D: 86400, H: 3600, M: 60, S: 1 };

/**
 * Seconds of an ISO 8601 duration without months, `PT1H`, `P1DT12H`; NaN of anything else.
 * @param {string} text
 */
export function seconds(text) {
  const found = /^P(?:(\d+(?:\.\d+)?)Y)?(?:(\d+(?:\.\d+)?)W)?(?:(\d+(?:\.\d+)?)D)?(?:T(?:(\d+(?:\.\d+)?)H)?(?:(\d+(?:\.\d+)?)M)?(?:(\d+(?:\.\d+)?)S)?)?$/.exec(text);
  if (!found) return NaN;
  return Object.values(PARTS).reduce((sum, size, index) => sum + size * Number(found[index + 1] ?? 0), 0);
}

/**
 * A length of time in words: `1 hour`, `15 min`.
 * @param {number} length seconds
 */
export function lasting(length) {
  const units = [[86400, "day"], [3600, "hour"], [60, "min"], [1, "s"]];
  for (const [size, name] of /** @type {[number, string][]} */ (units)) {
    if (length >= size) {
      const count = Math.round((length / size) * 100) / 100;
      return `${count} ${name}${count === 1 || name.length < 4 ? "" : "s"}`;
    }
  }
  return `${length} s`;
}

/**
 * Seconds since the epoch of a time in a table or an answer; one without an offset is taken to be UTC, so that only its
 * distance from others means anything. NaN where it is none.
 * @param {string} text
 */
export function instant(text) {
  const iso = text.trim().replace(" ", "T");
  const plain = /^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d+)?)?)?$/.test(iso);
  return Date.parse(plain ? (iso.includes("T") ? `${iso}Z` : iso) : iso) / 1000;
}

/**
 * Writes times of a zone: `Tue 31 Dec, 00:00`; without the time of day where steps are days.
 * @param {string} zone
 * @param {number} step seconds from one to the next
 */
export function clock(zone, step) {
  const day = { weekday: "short", day: "numeric", month: "short" };
  const time = step < 86400 ? { hour: "2-digit", minute: "2-digit", hourCycle: "h23" } : { year: "numeric" };
  const second = step < 60 ? { second: "2-digit" } : {};
  const format = new Intl.DateTimeFormat("en-GB", /** @type {any} */ ({ ...day, ...time, ...second, timeZone: zone }));
  return (/** @type {number} */ at) => format.format(new Date(at * 1000));
}
