"""When an instance that stopped being ready may be stopped: DrainWait decides, without I/O, and Drain asks it.

Invariant: `waiting()` is empty only if every control-plane replica that the registry knows says that all of its Envoys
have acknowledged `revision`, at which the instance was written as DRAINING, and that none of them has a
request in flight on it. A replica without Envoys has nothing in flight. A replica whose record goes (it stopped, or its
lease ended) is no longer waited for: its Envoys find another one, which waits for them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import cast

from registry.etcd import EtcdClient
from registry.follow import Changes, Connection, Snapshot, Update, follow
from registry.keys import Keyspace, PlaneKey
from registry.leased import LeasedKeys
from registry.records import PlaneRecord, RecordError, decode_plane

log = logging.getLogger(__name__)


class DrainWait:
    """One instance's drain. `apply` takes what follow() tells of the `planes/` prefix."""

    def __init__(self, instance: str, revision: int, keyspace: Keyspace) -> None:
        self._instance = instance
        self._revision = revision
        self._keyspace = keyspace
        self._planes: dict[str, PlaneRecord | None] = {}
        self.listed = False
        """Whether the list of replicas has been read; before that nobody can be known to be waited for."""

    def apply(self, puts: Mapping[str, bytes], deletes: Iterable[str] = ()) -> None:
        """Take in changed and deleted records; the first call brings the whole list."""
        self.listed = True
        for raw in deletes:
            if isinstance(key := self._keyspace.parse(raw), PlaneKey):
                self._planes.pop(key.replica, None)
        for raw, value in puts.items():
            if isinstance(key := self._keyspace.parse(raw), PlaneKey):
                try:
                    self._planes[key.replica] = decode_plane(value)
                except RecordError:
                    # Not to be understood is not the same as converged.
                    self._planes[key.replica] = None

    def waiting(self) -> tuple[str, ...]:
        """Who is waited for and why, one phrase each; empty: the server may be stopped."""
        if not self.listed:
            return ("etcd, for the list of control planes",)
        reasons = ((replica, self._reason(plane)) for replica, plane in sorted(self._planes.items()))
        return tuple(f"control plane {replica}: {reason}" for replica, reason in reasons if reason)

    def _reason(self, plane: PlaneRecord | None) -> str:
        if plane is None:
            return "its record can't be read"
        if plane.converged_revision < self._revision:
            return f"its {plane.envoys} Envoys are at revision {plane.converged_revision} of {self._revision}"
        if plane.envoys == 0:
            return ""
        in_flight = plane.draining.get(self._instance)
        if in_flight is None:
            return "its Envoys have not reported their load yet"
        return f"{in_flight} requests in flight" if in_flight else ""


class Drain:
    """Waits until a drain that the registered keys already tell of is complete."""

    def __init__(self, etcd: EtcdClient, leased: LeasedKeys, instance: str, keyspace: Keyspace) -> None:
        self._etcd = etcd
        self._leased = leased
        self._instance = instance
        self._keyspace = keyspace
        self._wait: DrainWait | None = None

    def waiting(self) -> tuple[str, ...]:
        """Who is waited for and why, at this moment."""
        return self._wait.waiting() if self._wait else ("etcd, to take the news",)

    async def run(self) -> None:
        """Returns when it is complete; as long as etcd is away it is not. Bound it by cancellation."""
        self._wait = wait = DrainWait(self._instance, await self._leased.flush(), self._keyspace)
        following = cast(AsyncGenerator[Update, None], follow(self._etcd, self._keyspace.planes))
        async with aclosing(following) as updates:
            async for update in updates:
                match update:
                    case Snapshot(entries=entries):
                        wait.apply(entries)
                    case Changes(puts=puts, deletes=deletes, relisted=relisted):
                        # An etcd that was wiped has forgotten the control planes, their Envoys have not gone: wait for
                        # them to come back.
                        wait.apply(puts, () if relisted else deletes)
                    case Connection(connected=connected, detail=detail):
                        log.info("etcd %s while draining: %s", "is back" if connected else "is away", detail)
                if not wait.waiting():
                    return
