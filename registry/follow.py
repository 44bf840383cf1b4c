"""A prefix of etcd, followed for ever. Invariant: applying the updates in order to an empty mapping gives, at each
revision, what etcd held at that revision; no event is lost and none comes twice, whatever happens to etcd.

`Picture` decides (pure); `follow` does the I/O. A broken watch is resumed after the last event delivered. It is trusted
only once etcd has shown that it still remembers that revision as we do: a wiped or restored etcd has another past, and
neither its cluster id (made from the members' addresses) nor its revision (it may have grown past ours) gives it away.
After a list that needs no second one, for the watch is made on a stream that was there before the list.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import TypeAlias

from registry.etcd import Compacted, EtcdClient, EtcdError, FutureRevision, Listing
from registry.etcd.connection import MAX_BACKOFF
from registry.etcd.watch import WatchBatch

log = logging.getLogger(__name__)

_FIRST_BACKOFF = 0.05


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys under the prefix at `revision`; keys are whole, prefix included."""

    revision: int
    entries: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened at one revision; with `relisted`, the difference between what was known and what etcd holds at
    `revision`, which may then be lower than before (a wiped or restored etcd)."""

    revision: int
    puts: Mapping[str, bytes]
    deletes: frozenset[str]
    relisted: bool = False


@dataclass(frozen=True, slots=True)
class Connection:
    """etcd was lost, or is back and has been caught up with from here on; `detail` is for logs."""

    connected: bool
    detail: str


Update: TypeAlias = Snapshot | Changes | Connection


class Picture:
    """What has been delivered so far, and from where to go on. Pure."""

    def __init__(self) -> None:
        self.revision = 0
        """The newest revision whose consequences have all been delivered; 0: nothing has."""
        self.entries: dict[str, bytes] = {}

    def listed(self, listing: Listing) -> Snapshot | Changes:
        """Take in a whole list: the first is a Snapshot, each later one the difference."""
        first, before = self.revision == 0, self.entries
        self.revision = listing.revision
        self.entries = {entry.key: entry.value for entry in listing.entries}
        if first:
            return Snapshot(self.revision, MappingProxyType(dict(self.entries)))
        puts = {key: value for key, value in self.entries.items() if before.get(key) != value}
        return Changes(self.revision, puts, frozenset(before.keys() - self.entries.keys()), relisted=True)

    def agrees(self, listing: Listing) -> bool:
        """Whether etcd's memory of `self.revision` is ours. If so, what it says of later revisions continues it."""
        return {entry.key: entry.value for entry in listing.entries} == self.entries

    def happened(self, batch: WatchBatch) -> list[Changes]:
        """Take in one batch of a watch: one Changes per revision not yet delivered."""
        if not batch.events:
            # A progress notification. The revision of any other answer runs ahead of the events delivered.
            self.revision = max(self.revision, batch.revision)
            return []
        changes = []
        for revision, events in groupby(batch.events, key=lambda event: event.revision):
            if revision <= self.revision:
                continue
            puts: dict[str, bytes] = {}
            deletes: set[str] = set()
            for event in events:
                if event.value is None:
                    puts.pop(event.key, None)
                    deletes.add(event.key)
                    self.entries.pop(event.key, None)
                else:
                    deletes.discard(event.key)
                    puts[event.key] = self.entries[event.key] = event.value
            self.revision = revision
            changes.append(Changes(revision, puts, frozenset(deletes)))
        return changes


class _AnotherPastError(Exception):
    """etcd does not remember what we have seen of it."""


async def follow(client: EtcdClient, prefix: str) -> AsyncIterator[Update]:
    """Every change under `prefix`, for ever. Connection updates apart, the first is the Snapshot and the only one.

    A Connection comes when it changes: none before a Snapshot means that etcd answered at the first attempt. Ends only
    by cancellation or `aclose()`; an etcd that is down, refuses the user or was wiped is tried again for ever.
    """
    picture = Picture()
    connected: bool | None = None
    backoff = _FIRST_BACKOFF
    relist = True
    while True:
        try:
            async with client.watch_stream(prefix) as stream:
                if fresh := relist:
                    await stream.prove()
                    # No name for the list itself: it would be kept for as long as the watch lasts.
                    update = picture.listed(await client.list(prefix))
                    if connected is False:
                        yield Connection(True, f"listed {prefix} at revision {picture.revision}")
                    connected, relist = True, False
                    yield update
                    del update
                watch = await stream.watch(picture.revision + 1)
                if not fresh and not picture.agrees(await client.list(prefix, revision=picture.revision)):
                    raise _AnotherPastError
                if not connected:
                    yield Connection(True, f"watching {prefix} on {watch.address} after revision {picture.revision}")
                connected, backoff = True, _FIRST_BACKOFF
                while True:
                    for changes in picture.happened(await watch.next()):
                        yield changes
        except (Compacted, FutureRevision, _AnotherPastError) as error:
            reason = str(error) or "etcd was wiped or restored from a backup"
            log.warning("listing %s again after revision %d: %s", prefix, picture.revision, reason)
            relist = True
        except EtcdError as error:
            if connected is not False:
                connected = False
                yield Connection(False, str(error))
        await asyncio.sleep(backoff)
        backoff = min(backoff * 2, MAX_BACKOFF)
