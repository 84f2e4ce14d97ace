"""The connection to a broker; the only room that imports paho. May import core and wire."""
