"""Versions that a server goes on loading though they are no longer on disk. Pure.

TensorFlow Serving notices that a version is not wanted any more between two tries to load it, which are a minute apart;
and while one thread does all the loading (`--num_load_threads=0`) not before the last of five tries. All that time it
says LOADING of a version that will never come.

Invariant: only what was seen on disk, and then was not, has been removed; what a look was too early
for has not.
"""

from __future__ import annotations

from collections.abc import Mapping

from monitor.disk import Look
from monitor.servables import VersionStatus, WatchedModel
from registry.records import ServableState

_ON_ITS_WAY = (ServableState.START, ServableState.LOADING)


class Removed:
    """Of one instance whose server sees the disk that is looked at."""

    def __init__(self) -> None:
        self._seen: dict[str, frozenset[int]] = {}

    def find(
        self, answers: Mapping[WatchedModel, tuple[VersionStatus, ...] | None], looks: Mapping[str, Look]
    ) -> Mapping[str, frozenset[int]]:
        """By model; to be asked again and again. `looks` is by base path."""
        found = {}
        for model, answer in answers.items():
            look = looks.get(model.base_path)
            if look is None or look.there is None:
                continue
            loading = frozenset(one.version for one in answer or () if one.state in _ON_ITS_WAY)
            self._seen[model.name] = loading & (self._seen.get(model.name, frozenset()) | look.versions)
            if gone := self._seen[model.name] - look.versions:
                found[model.name] = gone
        return found
