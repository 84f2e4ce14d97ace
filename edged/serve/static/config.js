// Push a layer: its settings, what would change, the push, and what each device makes of it.

import { el, phase, request, text } from "./dom.js";
import { golden, table } from "./tables.js";
import { state, subscribe } from "./store.js";

const shown = (value) => (value === null || value === undefined ? "not set" : JSON.stringify(value));

function progress(reported) {
  const done = typeof reported.done === "number" ? Math.min(1, Math.max(0, reported.done)) : 0;
  const bar = el("i", {});
  bar.style.width = `${Math.round(100 * done)}%`;
  return el(
    "div",
    {},
    text(reported.step, 20),
    el(
      "div",
      {
        class: "progress",
        role: "progressbar",
        "aria-valuenow": Math.round(100 * done),
        "aria-valuemin": 0,
        "aria-valuemax": 100,
      },
      bar,
    ),
  );
}

export function configView(name) {
  const layer = name || "fleet";
  const settings = el("textarea", {
    rows: 10,
    spellcheck: "false",
    "aria-label": "Settings as YAML",
    placeholder: "generation:\n  max_tokens: 128",
  });
  const choice = el("input", {
    value: layer,
    "aria-label": "Layer: fleet, group:NAME or device:NAME",
    onchange: () => {
      location.hash = `#/config/${encodeURIComponent(choice.value.trim())}`;
    },
  });
  const outcome = el("div", { role: "status" });
  const answers = el("div", {});
  const buttons = [
    ["Show what changes", "", diff],
    ["Push", "primary", push],
    ["Undo the last change", "", undo],
  ].map(([label, kind, run]) =>
    el("button", { class: kind, type: "button", onclick: () => act(run) }, label),
  );
  const element = el(
    "div",
    {},
    el("h1", {}, "Config"),
    el(
      "p",
      { class: "soft" },
      "A layer's settings replace those that it had. Layers: fleet, group:NAME, device:NAME. " +
        "They are not signed here; edgectl config push --key signs.",
    ),
    el("div", { class: "row" }, el("label", {}, "Layer ", choice)),
    settings,
    el("div", { class: "row" }, buttons),
    outcome,
    answers,
  );
  let pushed = null;

  async function act(run) {
    for (const button of buttons) button.disabled = true;
    try {
      await run();
    } catch (error) {
      outcome.replaceChildren(el("p", { class: "bad", role: "alert" }, text(error.message, 800)));
    }
    for (const button of buttons) button.disabled = false;
  }

  async function diff() {
    const { changes, trial } = await request("/console/config/diff", { layer, settings: settings.value });
    const rows = changes.map((one) =>
      el(
        "tr",
        {},
        el("td", {}, el("code", {}, text(one.key, 120))),
        el("td", {}, text(shown(one.before), 400)),
        el("td", {}, text(shown(one.after), 400)),
      ),
    );
    const how = trial
      ? "The model changes: each device tries it and comes back by itself if it fails."
      : "It changes in place, without a trial.";
    outcome.replaceChildren(
      ...(rows.length
        ? [table(["key", "now", "after"], rows), el("p", {}, how)]
        : [el("p", {}, "Nothing would change.")]),
    );
  }

  async function push() {
    follow(await request("/console/config/push", { layer, settings: settings.value }));
  }

  async function undo() {
    follow(await request("/console/config/undo", { layer }));
  }

  function follow(result) {
    pushed = result;
    outcome.replaceChildren(el("p", {}, `Revision ${result.revision} of ${result.layer} pushed.`));
    draw();
  }

  function draw() {
    if (pushed === null) return;
    const rows = [...state.devices]
      .filter(
        ([, device]) =>
          device.reported?.layer === pushed.reported_as && device.reported?.revision === pushed.revision,
      )
      .filter(([device]) => !pushed.layer.startsWith("device:") || pushed.layer === `device:${device}`)
      .sort()
      .map(([device, { reported }]) =>
        el(
          "tr",
          {},
          el("td", {}, el("a", { href: `#/device/${encodeURIComponent(device)}` }, device)),
          el("td", {}, phase(reported.phase)),
          el(
            "td",
            {},
            reported.phase === "trial" ? progress(reported) : text(reported.reason, 800),
            golden(reported),
          ),
        ),
      );
    answers.replaceChildren(
      rows.length
        ? table(["device", "phase", "what"], rows)
        : el("p", { class: "soft" }, "No device has answered yet."),
    );
  }

  return { element, end: subscribe(draw), title: "Config" };
}
