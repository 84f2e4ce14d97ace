// One device: findings, curves, events, its config as layers, and the last decisions.

import { bytes, el, health, layers, moment, phase, request, status, text } from "./dom.js";
import { curve } from "./curves.js";
import { golden, table } from "./tables.js";
import { subscribe } from "./store.js";

const list = (items, empty) =>
  items.length
    ? el(
        "ul",
        { class: "plain" },
        items.map((item) => el("li", {}, item)),
      )
    : el("p", { class: "soft" }, empty);
const array = (value) => (Array.isArray(value) ? value.filter((one) => one && typeof one === "object") : []);

function head(about) {
  const model = about.health.model ?? {};
  const parts = [
    text(model.name, 80),
    model.quantization && text(model.quantization, 60),
    model.backend && text(model.backend, 20),
    about.health.version && `edged ${text(about.health.version, 20)}`,
  ];
  return el(
    "div",
    {},
    el("h1", {}, `${about.name} `, status(about.status), " ", health(about.health.state)),
    el("p", { class: "soft" }, parts.filter(Boolean).join(" · ")),
    el(
      "p",
      { class: "row" },
      el("a", { href: `#/chat/${encodeURIComponent(about.name)}` }, "Chat"),
      el("a", { href: `#/config/${encodeURIComponent(`device:${about.name}`)}` }, "Push a config"),
    ),
  );
}

const RATE_OVER = 60; // seconds over which prompts a minute are counted

// The counter begins again at 0 with each start of the daemon: a fall counts what came since.
function promptsAMinute(readings) {
  const points = readings.map((one) => [one[0], one[6]]).filter(([, value]) => typeof value === "number");
  const steps = points.slice(1).map(([at, value], index) => {
    const before = points[index][1];
    return [at, value >= before ? value - before : value, at - points[index][0]];
  });
  return steps.map(([at], index) => {
    let answered = 0;
    let seconds = 0;
    for (let back = index; back >= 0 && steps[back][0] > at - RATE_OVER; back -= 1) {
      answered += steps[back][1];
      seconds += steps[back][2];
    }
    return [at, seconds > 0 ? (60 * answered) / seconds : null];
  });
}

function curves(readings) {
  const column = (index, factor = 1) =>
    readings.map((one) => [one[0], one[index] === null ? null : one[index] * factor]);
  return el(
    "div",
    { class: "grid" },
    curve("Tokens per second", column(1), "tok/s", 1),
    curve("Temperature", column(2), "°C"),
    curve("Memory in use", column(3, 1e-9), "GB", 2),
    curve("Processor", column(4), "%"),
    curve("Open prompts", column(5), ""),
    curve("Prompts a minute", promptsAMinute(readings), "", 1),
  );
}

function findings(about) {
  const lines = array(about.health.findings).map((one) =>
    el(
      "span",
      {},
      el("strong", {}, text(one.code, 60)),
      ` since ${moment(one.since)}: ${text(one.advice, 500)}`,
    ),
  );
  return list(lines, "None.");
}

function events(about) {
  const lines = array(about.events).map((one) =>
    el(
      "span",
      {},
      el("span", { class: "soft" }, `${moment(one.ts ?? one.at)} `),
      el("strong", {}, text(one.code, 60)),
      ` ${text(one.message, 500)}`,
    ),
  );
  return list(lines, "None since this console was started.");
}

function config(about) {
  const reported = about.reported;
  const line = el(
    "p",
    {},
    reported.phase ? phase(reported.phase) : "–",
    ` ${text(reported.reason, 800)}. In force: ${layers(reported.in_force)}`,
  );
  const settings = array(about.settings).map((one) =>
    el(
      "tr",
      {},
      el("td", {}, el("code", {}, text(one.key, 120))),
      el("td", {}, text(JSON.stringify(one.value), 400)),
      el("td", {}, text(one.layer, 80)),
      el("td", { class: "soft" }, one.overrides.join(", ")),
    ),
  );
  const others = array(about.layers)
    .filter((one) => !one.in_force)
    .map((one) => `${text(one.name, 80)} revision ${text(one.revision, 20)} is at the broker, not in force.`);
  return el(
    "div",
    {},
    line,
    settings.length
      ? table(["setting", "value", "from layer", "overrides"], settings)
      : el("p", { class: "soft" }, "No layer sets anything: the device's own file is in force."),
    others.map((sentence) => el("p", { class: "warn" }, sentence)),
    golden(reported),
  );
}

function history(about) {
  const rows = array(about.history).map((one) =>
    el(
      "tr",
      {},
      el("td", {}, moment(one.ts)),
      el("td", {}, text(one.layer, 80)),
      el("td", { class: "number" }, text(one.revision, 20)),
      el("td", {}, phase(one.phase)),
      el("td", {}, text(one.reason, 500)),
    ),
  );
  return rows.length
    ? table(["when", "layer", "revision", "phase", "reason"], rows)
    : el("p", { class: "soft" }, "None.");
}

function curvesAndFigures(about) {
  const memory = about.telemetry.memory ?? {};
  const disk = about.telemetry.disk ?? {};
  return el(
    "div",
    {},
    curves(about.readings),
    el(
      "p",
      { class: "soft" },
      `Memory ${bytes(memory.total_bytes)}, worker ${bytes(about.telemetry.worker?.rss_bytes)}, ` +
        `disk free ${bytes(disk.free_bytes)} of ${bytes(disk.total_bytes)}`,
    ),
  );
}

// Title, what the section is made from, how. A section is drawn again only when that changed: focus and scrolling stay.
const SECTIONS = [
  ["", (about) => [about.status, about.health.state, about.health.model, about.health.version], head],
  ["Findings", (about) => about.health.findings, (about) => el("div", { class: "panel" }, findings(about))],
  ["The last hour", (about) => about.readings, curvesAndFigures],
  ["Config", (about) => [about.reported, about.settings, about.layers], config],
  ["Decisions", (about) => about.history, history],
  ["Events", (about) => about.events, (about) => el("div", { class: "panel" }, events(about))],
];

function sections() {
  const drawn = SECTIONS.map(([title, from, draw]) => ({ title, from, draw, made: el("div", {}), data: null }));
  const element = el(
    "div",
    {},
    drawn.map(({ title, made }) => (title ? [el("h2", {}, title), made] : made)).flat(),
  );
  const show = (about) => {
    for (const one of drawn) {
      const data = JSON.stringify(one.from(about)) ?? "";
      if (data === one.data) continue;
      one.data = data;
      one.made.replaceChildren(one.draw(about));
    }
  };
  return { element, show };
}

export function deviceView(name) {
  const element = el("div", {}, el("p", { class: "soft" }, "Loading …"));
  let shown = null;
  let due = null;
  let ended = false;

  async function load() {
    due = null;
    try {
      const about = await request(`/console/device/${encodeURIComponent(name)}`);
      if (ended) return;
      if (shown === null) {
        shown = sections();
        element.replaceChildren(shown.element);
      }
      shown.show(about);
    } catch (error) {
      shown = null;
      if (!ended) element.replaceChildren(el("h1", {}, name), el("p", { class: "bad" }, text(error.message)));
    }
  }

  const unsubscribe = subscribe((names) => {
    if ((names === null || names.has(name)) && due === null) due = setTimeout(load, 1000);
  });
  load();
  const end = () => {
    ended = true;
    clearTimeout(due);
    unsubscribe();
  };
  return { element, end, title: name };
}
