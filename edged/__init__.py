"""edged: a small language model on a board, answering over MQTT."""

__version__ = "0.1.0"
