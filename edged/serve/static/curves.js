// Curves of the last hour.

import { el, isNumber, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 80;
const GAP = 60; // seconds without a reading: the curve is interrupted

export function curve(title, points, unit, digits = 0) {
  const known = points.filter(([, value]) => isNumber(value));
  const values = known.map(([, value]) => value);
  const low = Math.min(0, ...values);
  const high = Math.max(low + 1e-9, ...values);
  const [from, to] = points.length ? [points[0][0], points[points.length - 1][0]] : [0, 1];
  let path = "";
  let before = null;
  for (const [at, value] of known) {
    const x = (WIDTH * (at - from)) / Math.max(1, to - from);
    const y = HEIGHT - 2 - ((HEIGHT - 4) * (value - low)) / (high - low);
    path += `${before === null || at - before > GAP ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    before = at;
  }
  const now = values.length ? `${values[values.length - 1].toFixed(digits)} ${unit}` : "–";
  const most = values.length ? `highest ${Math.max(...values).toFixed(digits)}` : "no readings yet";
  const drawing = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": `${title}: ${now}, ${most}`,
  });
  drawing.append(svg("path", { d: path }));
  return el(
    "div",
    { class: "panel curve" },
    el("p", {}, el("strong", {}, title), el("span", { class: "number" }, now)),
    drawing,
    el("p", { class: "soft" }, most),
  );
}
