"""The MQTT contract: topics and payloads, bytes ↔ types. Only wire knows JSON keys. May import core, config."""
