// The table of the fleet.

import { degrees, el, health, layers, moment, phase, share, speed, status, text } from "./dom.js";
import { state, subscribe } from "./store.js";

const COLUMNS = [
  "device",
  "state",
  "health",
  "model",
  "tokens/s",
  "temperature",
  "memory",
  "queue",
  "config in force",
  "last change",
];
const MOST = 500; // rows at once; the filter finds the others

function cells(name, device) {
  const telemetry = device.telemetry ?? {};
  const memory = telemetry.memory ?? {};
  const queue = telemetry.queue ?? {};
  const reported = device.reported ?? {};
  const inForce = el("span", {}, layers(reported.in_force));
  if (reported.phase && reported.phase !== "applied") inForce.append(" ", phase(reported.phase));
  const findings = Array.isArray(device.findings) ? device.findings.length : 0;
  const state = el("span", {}, health(device.health), findings ? ` ${findings}` : "");
  return [
    el("a", { href: `#/device/${encodeURIComponent(name)}` }, name),
    status(device.status),
    state,
    text(device.model || null, 60),
    speed(telemetry.speed?.tokens_per_second),
    degrees(telemetry.temperature_c),
    share(memory.used_bytes, memory.total_bytes),
    `${text(queue.running ?? 0, 8)} of ${text(queue.open ?? 0, 8)}`,
    inForce,
    moment(reported.ts),
  ];
}

function row(name, device) {
  const numbers = new Set([4, 5, 6, 7]);
  return el(
    "tr",
    {},
    cells(name, device).map((cell, index) =>
      el("td", { "data-name": COLUMNS[index], class: numbers.has(index) ? "number" : "" }, cell),
    ),
  );
}

export function fleetView() {
  const rows = new Map();
  const body = el("tbody");
  const filter = el("input", {
    type: "search",
    placeholder: "name, state or model",
    "aria-label": "Filter the devices",
    oninput: () => draw(null),
  });
  const count = el("p", { class: "soft", role: "status" });
  const table = el(
    "table",
    { class: "fleet" },
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        COLUMNS.map((name) => el("th", { scope: "col" }, name)),
      ),
    ),
    body,
  );
  const element = el(
    "div",
    {},
    el("h1", {}, "Fleet"),
    el("div", { class: "row" }, filter, count),
    el("div", { class: "wide" }, table),
  );

  function matches(name, device) {
    const wanted = filter.value.trim().toLowerCase();
    return (
      !wanted || `${name} ${device.status} ${device.health} ${device.model}`.toLowerCase().includes(wanted)
    );
  }

  function draw(names) {
    const shown = [...state.devices.keys()]
      .filter((name) => matches(name, state.devices.get(name)))
      .sort()
      .slice(0, MOST);
    const same =
      names !== null && shown.length === body.children.length && shown.every((name) => rows.has(name));
    for (const name of names ?? shown) {
      const device = state.devices.get(name);
      if (!device || !shown.includes(name)) continue;
      const made = row(name, device);
      if (same) {
        const focused = rows.get(name).contains(document.activeElement);
        rows.get(name).replaceWith(made);
        if (focused) made.querySelector("a").focus({ preventScroll: true });
      }
      rows.set(name, made);
    }
    if (!same)
      body.replaceChildren(
        ...shown.map(
          (name) => rows.get(name) ?? rows.set(name, row(name, state.devices.get(name))).get(name),
        ),
      );
    const online = [...state.devices.values()].filter((device) => device.status === "online").length;
    const some = shown.length < state.devices.size ? `, ${shown.length} shown` : "";
    count.textContent = state.devices.size
      ? `${state.devices.size} ${state.devices.size === 1 ? "device" : "devices"}, ${online} online${some}`
      : "No device has been seen at this broker yet.";
  }

  draw(null);
  return { element, end: subscribe(draw), title: "Fleet" };
}
