// The fleet as the server sends it: all devices first, then those that change. Views subscribe to it.

const listeners = new Set();
export const state = { fleet: "", problem: "", refused: [], devices: new Map(), connected: false };

export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function publish(names) {
  for (const listener of [...listeners]) listener(names);
}

function take(event, whole) {
  const document = JSON.parse(event.data);
  Object.assign(state, {
    fleet: document.fleet,
    problem: document.problem,
    refused: document.refused,
    connected: true,
  });
  if (whole) state.devices.clear();
  for (const [name, device] of Object.entries(document.devices)) {
    if (device === null) state.devices.delete(name);
    else state.devices.set(name, device);
  }
  publish(whole ? null : new Set(Object.keys(document.devices)));
}

export function connect() {
  const source = new EventSource("/console/fleet");
  source.addEventListener("fleet", (event) => take(event, true));
  source.addEventListener("change", (event) => take(event, false));
  source.addEventListener("error", () => {
    state.connected = false;
    publish(new Set());
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
  });
}
