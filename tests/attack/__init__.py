"""Attacks on a started daemon, each with a check that knows only what clients sent and saw: `scripts/attack`."""
