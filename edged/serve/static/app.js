// The router: the part after # names a view. A view returns an element and what ends it.

import { el, text } from "./dom.js";
import { connect, state, subscribe } from "./store.js";
import { fleetView } from "./fleet.js";
import { deviceView } from "./device.js";
import { chatView } from "./chat.js";
import { configView } from "./config.js";

const VIEWS = { "": fleetView, device: deviceView, chat: chatView, config: configView };
const main = document.getElementById("main");
const link = document.getElementById("link");
let leave = () => {};

function show() {
  const [, kind = "", ...rest] = location.hash.split("/");
  const name = decodeURIComponent(rest.join("/"));
  leave();
  const view = VIEWS[kind] ?? fleetView;
  const { element, end, title } = view(name);
  leave = end;
  main.replaceChildren(element);
  document.title = `${title} – edged`;
  for (const anchor of document.querySelectorAll("header nav a")) {
    const same = anchor.hash.split("/")[1] === kind;
    if (same) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
}

function showLink() {
  const refused = state.refused.length
    ? `The broker refuses the subscription to ${state.refused.map((topic) => text(topic)).join(", ")}.`
    : "";
  const problem = !state.connected
    ? "No connection to edgectl serve; trying again."
    : state.problem
      ? `No broker: ${text(state.problem)}`
      : refused;
  link.className = problem ? "bad" : "";
  link.replaceChildren(problem || `Fleet ${text(state.fleet, 64)}`, el("span", {}));
}

window.addEventListener("hashchange", () => {
  show();
  main.focus({ preventScroll: true });
});
subscribe(showLink);
show();
connect();
