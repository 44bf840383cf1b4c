"""The one picture of all resources that every stream shares.

Invariants: an update costs what changed, never the table's size; a resource whose version is equal is no change; every
update has the next generation, so a stream can tell a change that it has already seen.

What the pipeline offers and what the streams are to have are two things while a resource is quarantined: then the
streams see its last good version, or nothing of that name. What they see is always one of the three: what is offered,
what was acknowledged before that, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from control_plane.resources.resource import Resource
from control_plane.xds.names import Rosters
from control_plane.xds.quarantine import Blame, Key, Quarantined


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
    `good` is the newest version that any stream has acknowledged, the resource itself as a rule; `good_since` the
    generation at which it went to that stream.
    """

    resource: Resource
    created: Moment
    good: Resource | None = None
    good_since: int = 0

    def is_good(self, version: str | None) -> bool:
        """Whether this is the version, and some client has acknowledged it."""
        return self.good is self.resource and self.resource.version == version


class Change(NamedTuple):
    """What happened to one name: `old` is None for a new one, `new` for a removed one.

    `withheld`: from now on there is nothing of this name to send, but nobody is to remove it. `was_withheld`: that is
    over; what clients hold of it isn't known. `trial`: the version before was quarantined, so this one is best sent
    by itself.
    """

    type_url: str
    name: str
    old: Resource | None
    new: Resource | None
    withheld: bool = False
    was_withheld: bool = False
    trial: bool = False


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
        self._quarantined: dict[Key, Quarantined] = {}
        self.quarantined: Mapping[Key, Quarantined] = MappingProxyType(self._quarantined)
        """What is quarantined now, by type URL and name; a live view."""
        self._refused: dict[Key, Resource] = {}
        self.rosters = Rosters(self.entries)
        """What the streams of this table share to keep their clients' subscriptions in."""

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

    def offered(self, type_url: str, name: str) -> Resource | None:
        """What the pipeline has put in, quarantined or not."""
        return self._refused.get((type_url, name)) or self.get(type_url, name)

    def withheld(self, type_url: str, name: str) -> Quarantined | None:
        """The quarantine of a name of which there is nothing to send; None if it is not withheld."""
        record = self._quarantined.get((type_url, name))
        return None if record is None or self.get(type_url, name) is not None else record

    def update(self, puts: Iterable[Resource], removes: Iterable[Key], revision: int) -> TableChange:
        """Bring in what one registry revision (or a batch up to it) changed; `removes` are (type_url, name).

        Removes of unknown names are ignored; where a name is in both, the put wins. A revision lower than the table's
        is taken as it is: a registry restored from a backup goes back. A new version of what is quarantined ends the
        quarantine, and so does its removal; the same version again changes nothing.
        """
        moment = self._next(revision)
        if revision < self._now.revision:
            self._went_back = moment.generation
        self._now = moment
        latest = {(resource.type_url, resource.name): resource for resource in puts}
        changes = [self._remove(key) for key in removes if key not in latest]
        changes += [self._put(key, resource) for key, resource in latest.items()]
        return TableChange(moment, tuple(change for change in changes if change is not None))

    def acknowledged(self, resource: Resource, generation: int) -> bool:
        """A stream has acknowledged this resource, which it was sent at `generation`. Costs the same for any table.

        True if it is quarantined: then it was the fault of the Envoy that refused it, and `acquit` is to be called.
        """
        entry = self._types.get(resource.type_url, _NOTHING).get(resource.name)
        if entry is not None and entry.good is entry.resource and entry.good.version == resource.version:
            return False
        record = self._quarantined.get((resource.type_url, resource.name))
        if record is not None:
            return record.version == resource.version
        if entry is not None:
            self._note_good(entry, resource, generation)
        return False

    def _note_good(self, entry: Entry, resource: Resource, generation: int) -> None:
        good, since = resource, generation
        if entry.resource.version == resource.version:
            good, since = entry.resource, self._now.generation
        elif generation <= entry.good_since or generation < entry.created.generation:
            # A slow Envoy acknowledges what others have left behind, or what was there under this name before.
            return
        self._types[resource.type_url][resource.name] = Entry(entry.resource, entry.created, good, since)

    def quarantine(self, type_url: str, name: str, version: str, blame: Blame) -> TableChange:
        """Hold this version back, because it was refused by itself.

        Nothing changes if the table has moved on, or if a stream has acknowledged this very version: then the fault is
        with the one that refused it.
        """
        entry = self._types.get(type_url, _NOTHING).get(name)
        if entry is None or entry.resource.version != version or entry.good is entry.resource:
            return TableChange(self._now, ())
        refused, good = entry.resource, entry.good
        self._now = self._next(self._now.revision)
        if good is None:
            self._drop(type_url, name)
        else:
            self._types[type_url][name] = Entry(good, entry.created, good, entry.good_since)
        if (type_url, name) not in self._quarantined:  # else it was tried once more
            self._refused[type_url, name] = refused
            last_good = None if good is None else good.version
            self._quarantined[type_url, name] = Quarantined.of(refused, last_good, blame, self.revision)
        return TableChange(self._now, (Change(type_url, name, refused, good, withheld=good is None),))

    def acquit(self, type_url: str, name: str, version: str) -> TableChange:
        """A stream has acknowledged what is quarantined: offer it to all again. Nothing if it no longer is."""
        key = (type_url, name)
        record = self._quarantined.get(key)
        if record is None or record.version != version:
            return TableChange(self._now, ())
        self._now = self._next(self._now.revision)
        change = self._offer_again(key, trial=False)
        del self._quarantined[key]
        self._note_good(self._types[type_url][name], self._refused.pop(key), self._now.generation)
        return TableChange(self._now, (change,) if change.old is not change.new else ())

    def retry_withheld(self) -> TableChange:
        """Offer everything that is withheld once more; it stays quarantined until some stream acknowledges it.

        Who holds nothing of it can lose nothing by it, and what one Envoy refuses for reasons of its own, such as a
        port that is taken, another may take. An Envoy that has refused it is not sent it again.
        """
        keys = [key for key in self._quarantined if self.withheld(*key) is not None]
        if not keys:
            return TableChange(self._now, ())
        self._now = self._next(self._now.revision)
        return TableChange(self._now, tuple(self._offer_again(key, trial=True) for key in keys))

    def _offer_again(self, key: Key, *, trial: bool) -> Change:
        resource = self._refused[key]
        entries = self._types.setdefault(resource.type_url, {})
        known = entries.get(resource.name)
        if known is None:
            entries[resource.name] = Entry(resource, self._now)
            return Change(*key, None, resource, was_withheld=True, trial=trial)
        entries[resource.name] = Entry(resource, known.created, known.good, known.good_since)
        return Change(*key, known.resource, resource, trial=trial)

    def _next(self, revision: int) -> Moment:
        return Moment(self._now.generation + 1, revision)

    def _put(self, key: Key, resource: Resource) -> Change | None:
        record = self._quarantined.get(key)
        if record is not None:
            if record.version == resource.version:
                return None
            del self._quarantined[key], self._refused[key]
        entries = self._types.setdefault(resource.type_url, {})
        known = entries.get(resource.name)
        if known is None:
            entries[resource.name] = Entry(resource, self._now if self._ready else BEGINNING)
            return Change(*key, None, resource, was_withheld=record is not None, trial=record is not None)
        old = known.resource
        same = old.version == resource.version
        good = resource if same and known.good is old else known.good
        entries[resource.name] = Entry(resource, known.created, good, known.good_since)
        return None if same else Change(*key, old, resource, trial=record is not None)

    def _remove(self, key: Key) -> Change | None:
        record = self._quarantined.pop(key, None)
        self._refused.pop(key, None)
        entry = self._drop(*key)
        unknown = record is not None and record.last_good_version is None
        if entry is None and record is None:
            return None
        return Change(*key, None if entry is None else entry.resource, None, was_withheld=unknown)

    def _drop(self, type_url: str, name: str) -> Entry | None:
        entries = self._types.get(type_url)
        if entries is None:
            return None
        entry = entries.pop(name, None)
        if not entries:
            del self._types[type_url]
        return entry
