/** A request in a form that runs elsewhere. The key is never in it. */

const LONGEST = 65536;

/** @typedef {{url: string, type: string, body: string, file: string, guarded: boolean}} Request */

/**
 * For a POSIX shell.
 * @param {Request} request
 */
export function curl({ url, type, body, file, guarded }) {
  const lines = [`curl -sS '${quotedUrl(url)}'`, `-H 'Content-Type: ${type}'`];
  if (guarded) lines.push('-H "Authorization: Bearer $FORETELL_KEY"');
  if (body.length > LONGEST) return [...lines, `--data-binary @${file}`].join(" \\\n  ");
  const end = unlike("END", body);
  return `${[...lines, `--data-binary @- <<'${end}'`].join(" \\\n  ")}\n${body.replace(/\n?$/, "\n")}${end}\n`;
}

/**
 * For Python, with nothing but its own library.
 * @param {Request} request
 */
export function python({ url, type, body, file, guarded }) {
  const given = body.length > LONGEST ? `open(${literal(file)}, "rb").read()` : `${block(body)}.encode()`;
  return [
    "import json",
    ...(guarded ? ["import os"] : []),
    "import urllib.request",
    "",
    `body = ${given}`,
    `headers = {"Content-Type": ${literal(type)}}`,
    ...(guarded ? ['headers["Authorization"] = "Bearer " + os.environ["FORETELL_KEY"]'] : []),
    `request = urllib.request.Request(${literal(url)}, body, headers)`,
    "with urllib.request.urlopen(request) as response:",
    "    print(json.load(response))",
    "",
  ].join("\n");
}

const literal = (/** @type {string} */ text) => JSON.stringify(text);
const quotedUrl = (/** @type {string} */ url) => url.replaceAll("'", "%27");

/** @param {string} body */
const block = (body) => `"""${body.replaceAll("\\", "\\\\").replaceAll('"""', '\\"\\"\\"').replace(/"$/, '\\"')}"""`;

/**
 * A word that is no line of the text.
 * @param {string} word
 * @param {string} text
 */
function unlike(word, text) {
  const lines = new Set(text.split(/\r?\n/));
  let found = word;
  while (lines.has(found)) found += "_";
  return found;
}

/**
 * JSON with a line for each row, so that a person can read it.
 * @param {Record<string, any>} content
 */
export function spread(content) {
  const fields = Object.entries(content).map(([name, value]) => {
    const rows = Array.isArray(value) && Array.isArray(value[0]);
    const text = rows ? `[\n  ${value.map((/** @type {any} */ row) => JSON.stringify(row)).join(",\n  ")}\n ]` : JSON.stringify(value);
    return ` ${JSON.stringify(name)}: ${text}`;
  });
  return `{\n${fields.join(",\n")}\n}\n`;
}
