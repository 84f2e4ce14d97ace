"""The daemon: journal, queue, reporter, supervisor; `daemon.py` wires them."""
