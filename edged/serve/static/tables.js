// Tables, and that of the golden prompts of a trial.

import { el, isNumber, speed, text } from "./dom.js";

export function table(columns, rows) {
  const head = columns.map((name) => el("th", { scope: "col" }, name));
  return el(
    "div",
    { class: "wide", tabindex: 0, role: "region", "aria-label": columns.join(", ") },
    el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)),
  );
}

// Nothing where the last push had no trial.
export function golden(reported) {
  const answers = Array.isArray(reported.golden) ? reported.golden.filter((one) => one && typeof one === "object") : [];
  if (!answers.length) return null;
  const rows = answers.map((one) =>
    el(
      "tr",
      {},
      el("td", {}, text(one.prompt, 200)),
      el("td", {}, text(one.answer, 200)),
      el("td", {}, el("span", { class: `mark ${one.held ? "good" : "bad"}` }, one.held ? "held" : "failed")),
      el("td", { class: "number" }, isNumber(one.took_ms) ? `${(one.took_ms / 1000).toFixed(1)} s` : "–"),
      el("td", { class: "number" }, speed(one.tokens_per_second)),
    ),
  );
  return el(
    "div",
    {},
    el("h3", {}, "Golden prompts of the last trial"),
    table(["prompt", "answer", "result", "took", "tokens/s"], rows),
  );
}
