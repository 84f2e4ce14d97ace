"""The contract: topics and payloads, bytes ↔ words. The only place that knows JSON keys. May import core."""
