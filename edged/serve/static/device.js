// One device: findings, curves, events, its config as layers, and the last decisions.

import { bytes, el, health, layers, moment, phase, request, status, text } from "./dom.js";
import { curve } from "./curves.js";
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
    curve("Prompts", column(5), ""),
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
    ` ${text(reported.reason, 800)} In force: ${layers(reported.in_force)}`,
  );
  const shown = about.layers.map(({ name, layer }) =>
    el("div", { class: "panel" }, el("strong", {}, name), el("pre", {}, JSON.stringify(layer, null, 2))),
  );
  return el(
    "div",
    {},
    line,
    shown.length
      ? el("div", { class: "grid" }, shown)
      : el("p", { class: "soft" }, "The broker has no layer for this device."),
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
  if (!rows.length) return el("p", { class: "soft" }, "None.");
  return el(
    "div",
    { class: "wide" },
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          ["when", "layer", "revision", "phase", "reason"].map((name) => el("th", { scope: "col" }, name)),
        ),
      ),
      el("tbody", {}, rows),
    ),
  );
}

function page(about) {
  const memory = about.telemetry.memory ?? {};
  const disk = about.telemetry.disk ?? {};
  return [
    head(about),
    el("h2", {}, "Findings"),
    el("div", { class: "panel" }, findings(about)),
    el("h2", {}, "The last hour"),
    curves(about.readings),
    el(
      "p",
      { class: "soft" },
      `Memory ${bytes(memory.total_bytes)}, worker ${bytes(about.telemetry.worker?.rss_bytes)}, ` +
        `disk free ${bytes(disk.free_bytes)} of ${bytes(disk.total_bytes)}`,
    ),
    el("h2", {}, "Config"),
    config(about),
    el("h2", {}, "Decisions"),
    history(about),
    el("h2", {}, "Events"),
    el("div", { class: "panel" }, events(about)),
  ];
}

export function deviceView(name) {
  const element = el("div", {}, el("p", { class: "soft" }, "Loading …"));
  let due = null;
  let ended = false;

  async function load() {
    due = null;
    try {
      const about = await request(`/console/device/${encodeURIComponent(name)}`);
      if (!ended) element.replaceChildren(...page(about));
    } catch (error) {
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
