"""The daemon: journal, desk, reporter, supervisor; `daemon.py` is the only wiring."""
