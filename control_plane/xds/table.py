"""The one picture of all resources that every stream shares.

Invariants: an update costs what changed, never the table's size; a resource whose version is equal is no change; every
update has the next generation, so a stream can tell a change that it has already seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from control_plane.resources.resource import Resource


class Moment(NamedTuple):
    """When something changed. Ordered by generation: a registry restored from a backup goes back in its revisions."""

    generation: int
    revision: int


BEGINNING = Moment(0, 0)
"""Before anything that we know of."""


class Entry(NamedTuple):
    """A resource and when it came to be.

    `created` is not moved by later changes: an Envoy that has nothing of this name lacks every revision from there on.
    It is BEGINNING for what the first snapshot held, since nobody knows when that came to be.
    """

    resource: Resource
    created: Moment


class Change(NamedTuple):
    """What happened to one name: `old` is None for a new one, `new` for a removed one; never both."""

    type_url: str
    name: str
    old: Resource | None
    new: Resource | None


@dataclass(frozen=True, slots=True)
class TableChange:
    """All that one update did, in the order given; empty when only the revision moved."""

    moment: Moment
    changes: tuple[Change, ...]


_NOTHING: Mapping[str, Entry] = MappingProxyType({})


class ResourceTable:
    """type_url -> name -> resource, at one registry revision. Not ready, and so not served, before the first snapshot.

    Not for threads: the event loop that owns it is its only writer and reader.
    """

    def __init__(self) -> None:
        self._types: dict[str, dict[str, Entry]] = {}
        self._now = BEGINNING
        self._went_back = 0
        self._ready = False

    @property
    def revision(self) -> int:
        """The registry revision that the table reflects; 0 before the first."""
        return self._now.revision

    @property
    def moment(self) -> Moment:
        """The moment of the last update."""
        return self._now

    def converged(self, lowest: Moment | None) -> int:
        """The newest revision of which nothing is outstanding, if `lowest` is the earliest moment that is; at least 0.

        What has been outstanding since before the registry went back proves nothing about its revisions now.
        """
        if lowest is None:
            return self._now.revision
        if lowest.generation < self._went_back:
            return 0
        return max(0, min(lowest.revision - 1, self._now.revision))

    @property
    def ready(self) -> bool:
        """Whether the first snapshot is in. Design rule 6: nothing is served before."""
        return self._ready

    def mark_ready(self) -> None:
        """Say that the first snapshot is in; for good, since an outage of the registry takes nothing back."""
        self._ready = True

    def entries(self, type_url: str) -> Mapping[str, Entry]:
        """All entries of one type by name; a live view."""
        return self._types.get(type_url, _NOTHING)

    def get(self, type_url: str, name: str) -> Resource | None:
        """One resource, or None."""
        entry = self._types.get(type_url, _NOTHING).get(name)
        return None if entry is None else entry.resource

    def types(self) -> Iterable[str]:
        """The types of which there is at least one resource."""
        return self._types.keys()

    def update(self, puts: Iterable[Resource], removes: Iterable[tuple[str, str]], revision: int) -> TableChange:
        """Bring in what one registry revision (or a batch up to it) changed; `removes` are (type_url, name).

        Removes of unknown names are ignored; where a name is in both, the put wins. A revision lower than the table's
        is taken as it is: a registry restored from a backup goes back.
        """
        moment = Moment(self._now.generation + 1, revision)
        if revision < self._now.revision:
            self._went_back = moment.generation
        self._now = moment
        created = moment if self._ready else BEGINNING
        changes: dict[tuple[str, str], Change] = {}
        for type_url, name in removes:
            entry = self._remove(type_url, name)
            if entry is not None:
                changes[type_url, name] = Change(type_url, name, entry.resource, None)
        for resource in puts:
            key = (resource.type_url, resource.name)
            entries = self._types.setdefault(resource.type_url, {})
            known = entries.get(resource.name)
            removed = changes.get(key)
            old = removed.old if removed is not None else known.resource if known is not None else None
            entries[resource.name] = Entry(resource, created if known is None else known.created)
            if old is None or old.version != resource.version:
                changes[key] = Change(*key, old, resource)
            else:
                changes.pop(key, None)
        return TableChange(moment, tuple(changes.values()))

    def _remove(self, type_url: str, name: str) -> Entry | None:
        entries = self._types.get(type_url)
        if entries is None:
            return None
        entry = entries.pop(name, None)
        if not entries:
            del self._types[type_url]
        return entry
