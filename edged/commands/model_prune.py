"""`edged model prune`: removes old models that are not in use; also what makes room for a pull."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edged.commands.configured import configured, store_folder
from edged.config.schema import Settings
from edged.core.errors import EdgedError, ModelError
from edged.fleet.layer_store import DamagedError
from edged.fleet.named_models import named_models
from edged.models.store.clean_up import CleanUp
from edged.models.store.store import Store
from edged.wire.topics import Topics


def run(arguments: argparse.Namespace) -> int:
    """Remove the oldest models until `--keep` are left, by default `models.keep`. Raises EdgedError."""
    values, settings, device = configured(arguments)
    keep = settings.models.keep if arguments.keep is None else arguments.keep
    store = Store(store_folder(settings))
    try:
        report = (lambda _: None) if arguments.json else print
        removed = clean_up(store, values, settings, device, report).down_to(keep)
    except DamagedError as error:
        raise EdgedError(f"nothing is removed, since it is not known which models are in use: {error}") from None
    except OSError as error:
        why = f"{store.root} cannot be written ({error.strerror}); run this as its owner"
        raise ModelError("no_disk", f"old models are not removed: {why}") from None
    if arguments.json:
        print(json.dumps({"removed": [{"name": model.name, "digest": model.digest} for model in removed]}))
    elif not removed:
        print(f"no model is removed: {len(store.list())} in the store, models.keep is {keep}")
    return 0


def clean_up(
    store: Store, values: Mapping[str, Any], settings: Settings, device: str, report: Callable[[str], None]
) -> CleanUp:
    """A clean-up that keeps what this device names as its model. Raises DamagedError, OSError."""
    topics = Topics(settings.identity.fleet, device, settings.identity.groups)
    return CleanUp(store, named_models(values, Path(settings.state_dir), topics), report)


def store_with_room(values: Mapping[str, Any], settings: Settings, device: str) -> Store:
    """The store, which removes old models that are not in use where a new one does not fit otherwise."""
    root = store_folder(settings)

    def make_room(missing: int) -> None:
        try:
            clean_up(Store(root), values, settings, device, lambda line: print(line, file=sys.stderr)).make_room(
                missing
            )
        except (DamagedError, OSError):
            return  # it is not known what is in use

    return Store(root, make_room)
