"""What every command needs of the config: checked values, settings, the device's name, the store's folder."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path
from typing import Any

from edged.config import file as config_file
from edged.config.device_name import device_name, machine_id
from edged.config.schema import Settings, build


def configured(arguments: argparse.Namespace) -> tuple[dict[str, Any], Settings, str]:
    """Checked values of the owner's file and variables, the settings they make, and the device's name.

    Raises ConfigError.
    """
    values = config_file.load(arguments.config, os.environ)
    settings = build(values)
    name = settings.identity.device or device_name(socket.gethostname(), machine_id())
    return values, settings, name


def store_folder(settings: Settings) -> Path:
    """The folder of the model store."""
    return Path(settings.state_dir) / "models"
