"""Whether the folders of models' versions have changed: a hint that their status is about to. Blocking; one `stat` per
folder. Nothing relies on it: the folders may be remote, or on another machine, and a reload shows in none of them."""

from __future__ import annotations

import os
from collections.abc import Iterable

from monitor.servables import WatchedModel


class VersionFolders:
    """Remembers when each model's folder was last changed. A version that comes or goes changes it."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def changed(self, models: Iterable[WatchedModel]) -> tuple[str, ...]:
        """The names of those whose folder is another than at the last call; a model's first look is no change."""
        seen: dict[str, int] = {}
        changed = []
        for model in models:
            if model.base_path.startswith("/"):
                seen[model.name] = found = _modified(model.base_path)
                if self._seen.get(model.name, found) != found:
                    changed.append(model.name)
        self._seen = seen
        return tuple(changed)


def _modified(folder: str) -> int:
    try:
        # A Path costs four times what the call does, and there may be a thousand of them a second.
        return os.stat(folder).st_mtime_ns  # noqa: PTH116
    except (OSError, ValueError):
        return 0
