"""Removes old models from the store: beyond `models.keep`, or to make room for another. Never one that is in use."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress

from edged.models.store.catalog import catalog
from edged.models.store.packed_cache import forget, forget_others, packed_bytes
from edged.models.store.store import MANIFEST, Store, StoredModel


class CleanUp:
    """A store, and the names, sources and digests of the models that are in use. `report` gets a sentence for each
    removal.
    """

    def __init__(self, store: Store, in_use: Collection[str], report: Callable[[str], None] = lambda _: None) -> None:
        self._store = store
        self._in_use = in_use
        self._report = report

    def removable(self) -> list[StoredModel]:
        """The models that are not in use, oldest first: by the time at which they were added."""
        models = [(self._added(model), model.digest, model) for model in self._store.list()]
        return [model for _, _, model in sorted(models) if not self._used(model)]

    def down_to(self, keep: int) -> list[StoredModel]:
        """Remove the oldest models until `keep` are left, and packed forms of models that are neither stored nor used.

        Returns what was removed. Raises OSError where the store cannot be written.
        """
        too_many = max(0, len(self._store.list()) - keep)
        removed = self.removable()[:too_many]
        for model in removed:
            self._remove(model)
        others = forget_others(self._store.root, {*self._in_use, *(model.digest for model in self._store.list())})
        for name in others:
            self._report(f"{name} is removed: no model that is stored or in use was packed into it")
        return removed

    def make_room(self, missing: int) -> None:
        """Remove the oldest models until `missing` bytes are free; nothing where all of them are not enough."""
        chosen: list[StoredModel] = []
        for model in self.removable():
            if missing <= 0:
                break
            chosen.append(model)
            missing -= self._bytes_of(model)
        if missing <= 0:
            with suppress(OSError):
                for model in chosen:
                    self._remove(model)

    def _remove(self, model: StoredModel) -> None:
        self._store.remove(model)
        forget(self._store.root, model.digest)
        self._report(f"{model.name} ({model.digest[:19]}…) is removed: it is old and not in use")

    def _bytes_of(self, model: StoredModel) -> int:
        return model.size + packed_bytes(self._store.root, model.digest)

    def _added(self, model: StoredModel) -> float:
        try:
            return (model.folder / MANIFEST).stat().st_mtime
        except OSError:
            return 0.0

    def _used(self, model: StoredModel) -> bool:
        names = {model.name, model.source, model.digest}
        names |= {entry.name for entry in catalog().values() if entry.key in names}
        return not names.isdisjoint(self._in_use) or any(
            model.digest.startswith(name) for name in self._in_use if name.startswith("sha256:")
        )
