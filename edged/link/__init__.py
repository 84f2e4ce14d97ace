"""The connection to a broker; the only package that imports paho. May import core, config and wire."""
