// Ask one device one prompt over MQTT. Needs Node 18 and MQTT.js 5 (npm install mqtt).
import { randomBytes } from "node:crypto";
import { parseArgs } from "node:util";
import mqtt from "mqtt";

const DONE = 0, FAILED = 1, USAGE = 2, NO_BROKER = 3, TIMED_OUT = 4;

function commandLine() {
  const text = (value) => ({ type: "string", default: value });
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      url: text("mqtt://127.0.0.1:1883"),
      user: { type: "string" }, // the password is taken from MQTT_PASSWORD
      fleet: text("home"),
      device: text("pi"),
      requester: text("me"),
      id: text(`ask-${randomBytes(8).toString("hex")}`),
      timeout: text("120"), // seconds for everything
      resend: text("5"), // seconds until the prompt is sent again
    },
  });
  if (positionals.length !== 1) throw new Error("give one text");
  return { ...values, text: positionals[0] };
}

// The text so far, shown as it grows. Positions count code points, which are what [...text] gives.
class Answer {
  points = [];

  chunk(at, text) {
    if (at > this.points.length) return; // a chunk was lost: the final carries the whole text
    // With `at` 0 it replaces everything before.
    this.show(this.points.slice(0, at).join("") + text);
  }

  show(text) {
    const before = this.points.join("");
    // Otherwise the device began anew, and wrote something else.
    process.stdout.write(text.startsWith(before) ? text.slice(before.length) : "\n" + text);
    this.points = [...text];
  }
}

const parsed = (message) => {
  try { return JSON.parse(message); } catch { return null; }
};

function complain(why, code) {
  process.stderr.write(`ask: ${why}\n`);
  return code;
}

function ask(options) {
  const device = `edged/v1/${options.fleet}/device/${options.device}`;
  const replies = `edged/v1/${options.fleet}/reply/${options.requester}/${options.device}/`;
  const payload = JSON.stringify({ id: options.id, prompt: options.text }); // the same each time
  const answer = new Answer();
  const client = mqtt.connect(options.url, {
    protocolVersion: 5,
    clean: true,
    resubscribe: false, // it is done below, at each connect
    username: options.user,
    password: process.env.MQTT_PASSWORD,
  });
  let sending; // the timer of the next copy, until the device has it
  const send = () => {
    const topic = `${device}/prompt/${options.requester}`;
    if (client.connected) client.publish(topic, payload, { qos: 1 });
    sending = setTimeout(send, options.resend * 1000);
  };
  const sendIn = (milliseconds) => {
    clearTimeout(sending);
    sending = setTimeout(send, milliseconds);
  };
  const end = (code) => {
    clearTimeout(sending);
    client.removeAllListeners("message"); // whatever comes after the final
    client.end(code === NO_BROKER, () => process.exit(code));
  };

  client.on("connect", () => {
    client.subscribe(replies + options.id, { qos: 1 }, (error, granted) => {
      const refused = error || granted.some(({ qos }) => qos >= 128);
      if (refused) end(complain(`no access to ${replies}`, NO_BROKER));
      else sendIn(0);
    });
  });
  client.once("connect", () => client.removeAllListeners("error").on("error", () => {}));
  client.on("error", (error) => { // after the first connect MQTT.js connects again by itself
    const why = error.message || error.code;
    end(complain(`the broker at ${options.url} cannot be used: ${why}`, NO_BROKER));
  });
  client.on("message", (_topic, message) => {
    const reply = parsed(message);
    if (reply?.id !== options.id) return; // not from the device
    clearTimeout(sending); // the device has it and keeps it, whatever happens there
    if (reply.conflict) end(complain(`conflict: ${reply.message}`, FAILED));
    else if (reply.final && reply.reason === "busy") sendIn(reply.retry_after_ms);
    else if (reply.final && reply.error) {
      end(complain(`${reply.reason} (${reply.error.code}): ${reply.error.message}`, FAILED));
    } else if (reply.final) {
      answer.show(reply.text);
      process.stdout.write("\n");
      end(["stop", "length"].includes(reply.reason) ? DONE : complain(reply.reason, FAILED));
    } else if ("seq" in reply) answer.chunk(reply.at, reply.text);
  });
  setTimeout(() => {
    const code = complain(`no answer within ${options.timeout} s`, TIMED_OUT);
    if (!client.connected) process.exit(code);
    const cancel = JSON.stringify({ id: options.id });
    client.publish(`${device}/cancel/${options.requester}`, cancel, { qos: 1 }, () => end(code));
  }, options.timeout * 1000);
}

try {
  ask(commandLine());
} catch (error) {
  process.exit(complain(error.message, USAGE));
}
