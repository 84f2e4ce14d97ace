"""The embedded MQTT broker for a machine without mosquitto: `embedded_broker.py PORT`, MQTT 5 on 127.0.0.1."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from iotcore import Broker

# The config file of rumqttd: a v5 listener, and a v4 one for clients of 3.1.1 where a second port is given.
CONFIG = """
id = 0
[router]
id = 0
max_connections = 200
max_outgoing_packet_count = 1000
max_segment_size = 10485760
max_segment_count = 10
{listeners}
"""
LISTENER = """
[{version}.1]
name = "{version}"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[{version}.1.connections]
connection_timeout_ms = 60000
max_payload_size = 16777216
max_inflight_count = 100
dynamic_filters = true
"""


def main() -> None:
    port = int(sys.argv[1])
    listeners = LISTENER.format(version="v5", port=port)
    if len(sys.argv) > 2:
        listeners += LISTENER.format(version="v4", port=int(sys.argv[2]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rumqttd.toml"
        path.write_text(CONFIG.format(listeners=listeners), encoding="utf-8")
        with Broker(config_path=str(path)):
            signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
