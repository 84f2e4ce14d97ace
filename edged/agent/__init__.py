"""The daemon: journal, queue, reporter, supervisor; `daemon.py` is the only wiring."""
