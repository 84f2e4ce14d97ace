"""Desired state on the device: layers, merge, decision, reported state. May import core and wire."""
