/** Asks the service, and says in words what went wrong. */

const PATIENCE_MS = 60_000;
const STORED = "foretell-key";

/** What a person is to be told. */
export class Trouble extends Error {
  /**
   * @param {string} words
   * @param {{status?: number, places?: {place: string, message: string}[], retryAfter?: number | null, id?: string}} more
   */
  constructor(words, { status = 0, places = [], retryAfter = null, id = "" } = {}) {
    super(words);
    this.status = status;
    this.places = places;
    this.retryAfter = retryAfter;
    this.id = id;
  }
}

/** The key of this tab; sessionStorage and nothing else holds it. */
export const key = {
  get: () => sessionStorage.getItem(STORED) ?? "",
  set: (/** @type {string} */ value) => (value ? sessionStorage.setItem(STORED, value) : sessionStorage.removeItem(STORED)),
};

const WORDS = new Map([
  [401, "The service is guarded: it takes a key."],
  [403, "The key may not do this."],
  [404, "The service does not know this."],
  [413, "The table is too large for the service."],
  [429, "The key has used up its quota for now."],
  [503, "The service cannot answer now."],
  [504, "The forecast took longer than it may."],
]);

/**
 * The answer, where it is one; a Trouble else. An AbortError where `signal` calls it off.
 * @param {string} path relative to the page
 * @param {{method?: string, body?: string, headers?: Record<string, string>, signal?: AbortSignal}} request
 */
export async function ask(path, { method = "GET", body, headers = {}, signal } = {}) {
  const ended = new AbortController();
  const timer = setTimeout(() => ended.abort("late"), PATIENCE_MS);
  const callOff = () => ended.abort();
  signal?.addEventListener("abort", callOff, { once: true });
  if (signal?.aborted) callOff();
  const authorization = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  try {
    const response = await fetch(path, {
      method, body, signal: ended.signal, credentials: "omit",
      headers: { ...headers, .../** @type {Record<string, string>} */ (authorization) },
    });
    if (!response.ok) throw await refusal(response);
    return response;
  } catch (error) {
    if (error instanceof Trouble || signal?.aborted) throw error;
    if (ended.signal.aborted) throw new Trouble("The service has not answered for a minute.");
    throw new Trouble("The service cannot be reached. Is it running, and is the network there?");
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", callOff);
  }
}

/**
 * The same, read as JSON.
 * @param {string} path
 * @param {Parameters<typeof ask>[1]} request
 * @returns {Promise<{content: any, headers: Headers}>}
 */
export async function askJson(path, request = {}) {
  const response = await ask(path, request);
  try {
    return { content: await response.json(), headers: response.headers };
  } catch (error) {
    if (request.signal?.aborted) throw error;
    throw new Trouble("What came back is no JSON. Is something between this page and the service?", { status: response.status });
  }
}

/** @param {Response} response */
async function refusal(response) {
  const id = response.headers.get("x-request-id") ?? "";
  const waits = response.headers.get("retry-after");
  const more = { status: response.status, retryAfter: waits && /^\d+$/.test(waits) ? Number(waits) : null, id };
  const words = WORDS.get(response.status);
  try {
    const problem = await response.json();
    if (typeof problem.detail !== "string") throw new TypeError();
    const places = Array.isArray(problem.errors) ? problem.errors : [];
    return new Trouble([words, sentence(problem.detail)].filter(Boolean).join(" "), { ...more, places });
  } catch {
    return new Trouble(words ?? `The service answered ${response.status} without a word.`, more);
  }
}

const sentence = (/** @type {string} */ text) =>
  text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** @param {string[]} parts */
export const path = (...parts) => parts.map(encodeURIComponent).join("/");
