"""The commands `edgectl config` and `edgectl keys`: their options, and which function runs them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edged.config.schema import Settings
from edged.core.errors import ConfigError
from edged.ctl.options import add_connection, check_name, seconds, settings_of

if TYPE_CHECKING:
    from edged.ctl.config import PushOptions, Target

WATCH_FOR = 3600.0  # seconds that a trial is followed


def add(commands: Any) -> None:
    """Add both."""
    _add_config(commands)
    _add_keys(commands)


def _add_config(commands: Any) -> None:
    config = commands.add_parser("config", help="push config layers, and show which are in force")
    verbs = config.add_subparsers(dest="verb", required=True, metavar="VERB")
    push = verbs.add_parser("push", help="push a layer of settings to the fleet, a group or a device")
    push.add_argument("file", type=Path, nargs="?", metavar="FILE", help="settings, or a whole layer, as YAML or JSON")
    push.add_argument("--remove", action="store_true", help="remove the layer instead")
    push.set_defaults(run=_push)
    undo = verbs.add_parser("undo", help="push the settings that a layer had before, from the devices' history")
    undo.set_defaults(run=_undo)
    for verb in (push, undo):
        verb.add_argument(
            "--wait",
            type=seconds,
            default=None,
            metavar="SECONDS",
            help="wait so long for the devices' reports (default: 10; with --watch 3600)",
        )
        verb.add_argument("--key", type=Path, metavar="FILE", help="sign the layer with this private key")
        verb.add_argument("--watch", action="store_true", help="follow the trial of a model to its end")
    diff = verbs.add_parser("diff", help="show what a push would change, and where")
    diff.add_argument("file", type=Path, metavar="FILE", help="settings, or a whole layer, as YAML or JSON")
    diff.set_defaults(run=_diff)
    for verb in (push, undo, diff):
        target = verb.add_mutually_exclusive_group()
        target.add_argument("--group", help="the layer of this group")
        target.add_argument("--device", help="the layer of this device")
    history = verbs.add_parser("history", help="print the devices' last decisions about layers")
    history.add_argument("--device", help="of this device alone")
    history.set_defaults(run=_history)
    get = verbs.add_parser("get", help="print the layers at the broker and the devices' reports")
    get.set_defaults(run=_get)
    for verb in (push, undo, diff, history, get):
        add_connection(verb, signs=verb in (push, undo))
        verb.add_argument("--json", action="store_true", help="print one JSON document")


def _add_keys(commands: Any) -> None:
    keys = commands.add_parser("keys", help="key pairs that sign config layers")
    verbs = keys.add_subparsers(dest="verb", required=True, metavar="VERB")
    new = verbs.add_parser("new", help="make a key pair")
    new.add_argument("name", metavar="NAME", help="of the key, for example ops-2026")
    listing = verbs.add_parser("list", help="list the keys that are here")
    shown = verbs.add_parser("fingerprint", help="print the fingerprint of a key")
    shown.add_argument("key", metavar="KEY", help="a name, the file of a private key, or a public key")
    for verb in (new, listing, shown):
        verb.add_argument("--folder", type=Path, metavar="FOLDER", help="default: ~/.config/edged/keys")
        verb.add_argument("--json", action="store_true", help="print one JSON document")
        verb.set_defaults(run=_keys)


def _push(arguments: argparse.Namespace) -> int:
    from edged.ctl.config import push

    if (arguments.file is None) != arguments.remove:
        raise ConfigError("give a FILE to push, or --remove to remove the layer")
    settings, target = _target(arguments)
    return push(settings.mqtt, target, arguments.file, _options(arguments))


def _undo(arguments: argparse.Namespace) -> int:
    from edged.ctl.config import undo

    settings, target = _target(arguments)
    return undo(settings.mqtt, target, _options(arguments))


def _diff(arguments: argparse.Namespace) -> int:
    from edged.ctl.config import diff

    settings, target = _target(arguments)
    return diff(settings.mqtt, target, arguments.file, arguments.json)


def _history(arguments: argparse.Namespace) -> int:
    from edged.ctl.config_history import show_history

    check_name(arguments, "device")
    settings = settings_of(arguments)
    return show_history(settings.mqtt, settings.identity.fleet, arguments.device, arguments.json)


def _target(arguments: argparse.Namespace) -> tuple[Settings, Target]:
    from edged.ctl.config import Target

    for option in ("group", "device"):
        check_name(arguments, option)
    settings = settings_of(arguments)
    return settings, Target(settings.identity.fleet, arguments.group, arguments.device)


def _options(arguments: argparse.Namespace) -> PushOptions:
    from edged.ctl.config import PushOptions
    from edged.ctl.keys import load

    key = None if arguments.key is None else load(arguments.key)
    default = WATCH_FOR if arguments.watch else 10.0
    wait = default if arguments.wait is None else arguments.wait
    return PushOptions(key, wait, arguments.watch, arguments.json)


def _get(arguments: argparse.Namespace) -> int:
    from edged.ctl.config import get

    settings = settings_of(arguments)
    return get(settings.mqtt, settings.identity.fleet, arguments.json)


def _keys(arguments: argparse.Namespace) -> int:
    from edged.ctl import keys

    folder = arguments.folder or keys.default_folder()
    if arguments.verb == "new":
        return keys.new(arguments.name, folder, arguments.json)
    if arguments.verb == "list":
        return keys.show_all(folder, arguments.json)
    return keys.show_fingerprint(arguments.key, folder, arguments.json)
