"""Ask one device one prompt over MQTT. Needs paho-mqtt 2 (pip install "paho-mqtt>=2.1")."""

import argparse
import json
import os
import queue
import secrets
import sys
import time
from contextlib import suppress
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt

DONE, FAILED, NO_BROKER, TIMED_OUT, NEVER = 0, 1, 3, 4, float("inf")  # 2: wrong usage


class Answer:
    """The text so far, shown as it grows."""

    text = ""

    def chunk(self, at, text):
        if at <= len(self.text):  # else a chunk was lost: the final carries the whole text
            self.show(self.text[:at] + text)  # with `at` 0 it replaces everything before

    def show(self, text):
        more = text.startswith(self.text)  # else the device began anew, and wrote something else
        print(text[len(self.text) :] if more else "\n" + text, end="", flush=True)
        self.text = text


def connect(options, inbox):
    """A client that subscribes at each connect. `inbox` gets None then, replies, and errors."""
    url = urlsplit(options.url)
    topic = f"edged/v1/{options.fleet}/reply/{options.requester}/{options.device}/{options.id}"
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.username_pw_set(options.user, os.environ.get("MQTT_PASSWORD"))
    if url.scheme == "mqtts":
        client.tls_set()

    def on_connect(client, _data, _flags, reason, _properties):
        if reason.is_failure:
            inbox.put(ConnectionError(f"it refuses us: {reason}"))
        else:
            client.subscribe(topic, qos=1)

    def on_subscribe(_client, _data, _mid, reasons, _properties):
        inbox.put(ConnectionError(f"no access to {topic}") if reasons[0].is_failure else None)

    def on_message(_client, _data, message):
        with suppress(ValueError, TypeError, KeyError):  # what is not from the device
            if (reply := json.loads(message.payload))["id"] == options.id:
                inbox.put(reply)

    client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
    client.connect(url.hostname, url.port or {"mqtts": 8883}.get(url.scheme, 1883), keepalive=30)
    client.loop_start()  # from here on it also connects again by itself
    return client


def ask(client, inbox, options):
    """Sends the prompt until something comes back, shows the answer; gives the exit code."""
    device = f"edged/v1/{options.fleet}/device/{options.device}"
    payload = json.dumps({"id": options.id, "prompt": options.text})  # the same bytes each time
    until = time.monotonic() + options.timeout
    send_at = NEVER  # not before we are subscribed, not after the device has it
    answer = Answer()
    while (now := time.monotonic()) < until:
        if now >= send_at:
            client.publish(f"{device}/prompt/{options.requester}", payload, qos=1)
            send_at = now + options.resend
        try:
            reply = inbox.get(timeout=max(0.0, min(until, send_at) - now))
        except queue.Empty:
            continue
        if isinstance(reply, Exception):
            raise reply
        if reply is None:  # subscribed, perhaps again after a lost connection
            send_at = time.monotonic()
            continue
        send_at = NEVER  # the device has it and keeps it, whatever happens there
        if reply.get("final") and reply["reason"] == "busy":
            send_at = time.monotonic() + reply["retry_after_ms"] / 1000
        elif reply.get("final") or reply.get("conflict"):
            return ended(reply, answer)
        elif "seq" in reply:
            answer.chunk(reply["at"], reply["text"])
    topic, payload = f"{device}/cancel/{options.requester}", json.dumps({"id": options.id})
    client.publish(topic, payload, qos=1).wait_for_publish(2)
    return complain(f"no answer within {options.timeout:g} s", TIMED_OUT)


def ended(reply, answer):
    """Shows a final, or that the id is in use; gives the exit code."""
    if reply.get("conflict"):
        return complain(f"conflict: {reply['message']}", FAILED)
    if error := reply.get("error"):
        return complain(f"{reply['reason']} ({error['code']}): {error['message']}", FAILED)
    answer.show(reply["text"] + "\n")
    return DONE if reply["reason"] in ("stop", "length") else complain(reply["reason"], FAILED)


def complain(why, code):
    print(f"ask: {why}", file=sys.stderr)
    return code


words = argparse.ArgumentParser(description="Ask one device one prompt over MQTT.")
words.add_argument("text")
names = {"url": "mqtt://127.0.0.1:1883", "fleet": "home", "device": "pi", "requester": "me"}
for name, default in {**names, "id": f"ask-{secrets.token_hex(8)}", "user": None}.items():
    words.add_argument(f"--{name}", default=default)
words.add_argument("--timeout", type=float, default=120.0, help="seconds for everything")
words.add_argument("--resend", type=float, default=5.0, help="seconds until it is sent again")
options, inbox = words.parse_args(), queue.SimpleQueue()
try:
    sys.exit(ask(connect(options, inbox), inbox, options))
except OSError as error:  # a ConnectionError is one
    sys.exit(complain(f"the broker at {options.url} cannot be used: {error}", NO_BROKER))
