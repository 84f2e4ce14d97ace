// A conversation with one device, or with any of the fleet. The turns stay in this page alone.

import { el, layers, speed, text } from "./dom.js";
import { stream } from "./events.js";
import { state, subscribe } from "./store.js";

const conversations = new Map(); // by device: the turns, as long as the page is open

function receipt(final) {
  const from = final.receipt ?? {};
  const timing = final.timing ?? {};
  const parts = [
    text(final.reason, 20),
    `${text(final.usage?.completion_tokens ?? 0, 12)} tokens`,
    `${speed(timing.tokens_per_second)} tokens/s`,
    `first text ${speed(timing.ttft_ms)} ms`,
    `${text(from.model, 60)} (${text(from.quantization, 40)}) on ${text(from.device, 64)}`,
    `config ${layers(from.config)}`,
  ];
  return el("div", { class: "receipt" }, parts.join(" · "));
}

function turn(role, content) {
  const answer = el("span", {}, content);
  const thought = el("div", { class: "thought" });
  const element = el("div", { class: `turn ${role}` }, thought, answer);
  return { element, answer, thought };
}

export function chatView(device) {
  const turns = conversations.get(device) ?? conversations.set(device, []).get(device);
  const log = el("div", { class: "log", "aria-live": "polite", "aria-label": "Conversation" });
  const input = el("textarea", {
    rows: 3,
    placeholder: "Ask something. Enter sends, Shift+Enter begins a line.",
    "aria-label": "Prompt",
    onkeydown: key,
  });
  const send = el("button", { class: "primary", type: "submit" }, "Send");
  const stop = el("button", { type: "button", disabled: true, onclick: () => running?.abort() }, "Stop");
  const clear = el("button", { type: "button", onclick: empty }, "New conversation");
  const choice = el("select", {
    "aria-label": "Device",
    onchange: () => {
      location.hash = `#/chat/${encodeURIComponent(choice.value)}`;
    },
  });
  const form = el("form", { onsubmit: submit }, input, el("div", { class: "row" }, send, stop, clear));
  const element = el("div", {}, el("div", { class: "row" }, el("h1", {}, "Chat with"), choice), log, form);
  let running = null;

  function names() {
    const known = [...state.devices]
      .filter(([, one]) => one.status === "online" || one.status === "starting")
      .map(([name]) => name)
      .sort();
    const wanted = [...new Set(["fleet", ...known, device])];
    if (wanted.join("/") !== [...choice.options].map((one) => one.value).join("/")) {
      choice.replaceChildren(
        ...wanted.map((name) =>
          el("option", { value: name, selected: name === device }, name === "fleet" ? "any device" : name),
        ),
      );
    }
  }

  function key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  }

  function empty() {
    running?.abort();
    turns.length = 0;
    log.replaceChildren();
    input.focus();
  }

  async function submit(event) {
    event.preventDefault();
    const asked = input.value.trim();
    if (!asked || running) return;
    input.value = "";
    turns.push({ role: "user", content: asked });
    log.append(turn("user", asked).element);
    await answer();
  }

  async function answer() {
    const shown = turn("assistant", "");
    log.append(shown.element);
    running = new AbortController();
    stop.disabled = false;
    send.disabled = true;
    let content = "";
    const take = (kind, document) => {
      if (kind === "text") {
        content += document.text;
        shown.answer.textContent = content;
        shown.thought.textContent += document.reasoning ?? "";
      } else if (kind === "final") shown.element.append(receipt(document.final));
      else fail(document.message);
      shown.element.scrollIntoView({ block: "nearest" });
    };
    const fail = (message) =>
      shown.element.append(el("div", { class: "failed", role: "alert" }, text(message, 500)));
    try {
      await stream("/console/chat", { device, messages: turns }, running.signal, take);
    } catch (error) {
      if (error.name === "AbortError") shown.element.append(el("div", { class: "receipt" }, "stopped"));
      else fail(error.message);
    }
    if (content) turns.push({ role: "assistant", content });
    else turns.pop();
    running = null;
    stop.disabled = true;
    send.disabled = false;
    input.focus();
  }

  for (const one of turns) log.append(turn(one.role, one.content).element);
  names();
  const unsubscribe = subscribe(names);
  const end = () => {
    unsubscribe();
    running?.abort();
  };
  return { element, end, title: "Chat" };
}
