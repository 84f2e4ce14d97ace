// Elements from plain data. What devices say reaches the page as text alone, never as HTML.

export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class") made.className = value;
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}

export const text = (value, most = 300) =>
  value === null || value === undefined ? "–" : String(value).slice(0, most);

const STATUS = { online: "good", starting: "warn", draining: "warn", safe: "bad", offline: "bad" };
const HEALTH = { ok: "good", degraded: "warn", failing: "bad" };
const PHASE = { applied: "good", trial: "warn", waiting: "warn", rolled_back: "bad", rejected: "bad" };

export const mark = (word, colours) => el("span", { class: `mark ${colours[word] ?? ""}` }, text(word, 40));
export const status = (word) => mark(word, STATUS);
export const health = (word) => (word ? mark(word, HEALTH) : "–");
export const phase = (word) => mark(word, PHASE);

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
export const speed = (value) => (isNumber(value) ? value.toFixed(1) : "–");
export const degrees = (value) => (isNumber(value) ? `${value.toFixed(0)} °C` : "–");
export const share = (part, whole) =>
  isNumber(part) && isNumber(whole) && whole > 0 ? `${Math.round((100 * part) / whole)} %` : "–";
export const bytes = (value) => (isNumber(value) ? `${(value / 1e9).toFixed(2)} GB` : "–");
export const moment = (value) => {
  const at = new Date(isNumber(value) ? value * 1000 : value);
  return value && !Number.isNaN(at.getTime()) ? at.toLocaleString() : "–";
};

export function layers(inForce) {
  const known = inForce && typeof inForce === "object" ? Object.entries(inForce) : [];
  return known.map(([name, revision]) => `${text(name, 70)}:${text(revision, 20)}`).join(" ") || "own file";
}

export async function request(path, body) {
  const options =
    body === undefined
      ? {}
      : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const document = await response.json();
  if (!response.ok) throw new Error(document?.error?.message ?? `the server answered ${response.status}`);
  return document;
}
