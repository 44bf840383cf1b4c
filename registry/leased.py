"""All keys of one writer on one lease. Invariant: what was set is in etcd, or on its way there, for ever: a lost lease,
a wiped or restored etcd, or a long sleep of this process is mended within one TTL of etcd's return.

The decisions are LeaseMachine's; here they are carried out, one at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence

from registry.etcd import (
    Compare,
    DeadlineExceeded,
    Delete,
    EtcdClient,
    EtcdError,
    Get,
    KeyValue,
    LeaseNotFound,
    Operation,
    Put,
    Target,
)
from registry.lease_machine import Action, Audit, Grant, Idle, LeaseMachine, Renew, SpotCheck, Write
from registry.transactions import MAX_OPERATIONS

log = logging.getLogger(__name__)

_SHORTEST_TIMEOUT = 0.5
_CLOSE_TIMEOUT = 3.0


class LeasedKeys:
    """Keys that live as long as this process says so. `set` and `flush` from the event loop's thread only."""

    def __init__(self, client: EtcdClient, ttl: float) -> None:
        """`ttl`: seconds that the keys outlive their writer; etcd rounds up to whole ones, at least 2."""
        if ttl <= 0:
            raise ValueError(f"ttl: {ttl} s is not a lease; give at least 1")
        self._client = client
        self._machine = LeaseMachine(ttl)
        self._patience = self._timeout = min(client.config.timeout, max(_SHORTEST_TIMEOUT, ttl / 3))
        self._wanted = asyncio.Event()
        self._moved = asyncio.Event()
        self._acting = asyncio.Lock()
        self._closed = False
        self._trouble = ""
        self._granted = False
        self._regranted_at: float | None = None

    @property
    def regranted_at(self) -> float | None:
        """When, in monotonic seconds, a lease was last granted in place of a lost one; None: that never happened. etcd
        may have lost other writers' keys then too."""
        return self._regranted_at

    @property
    def held(self) -> bool:
        """Whether the lease is alive as far as we can know; false before `run` got one."""
        return self._machine.held(time.monotonic())

    def set(self, changes: Mapping[str, bytes | None]) -> None:
        """Change the desired keys: bytes puts, None deletes. Those of one call go out in one transaction, if etcd's
        limits (128 operations, 1.5 MB) allow. Raises ValueError for a value that etcd can't take."""
        self._machine.set(changes)
        self._wanted.set()

    async def flush(self) -> int:
        """Wait until all that was set so far is in etcd; a revision at which all of it was. 0: nothing was ever set.

        Waits as long as etcd is away: bound it by `asyncio.timeout`. Needs `run` to be running. Raises RuntimeError
        after `close`.
        """
        number = self._machine.number
        while not self._machine.settled(number):
            if self._closed:
                raise RuntimeError("flush after close: what was not written by then never will be")
            await self._moved.wait()
        return self._machine.revision

    async def run(self) -> None:
        """Make etcd hold the desired keys, until cancelled. etcd's troubles are logged and tried again."""
        while True:
            action = Idle(None) if self._closed else self._machine.decide(time.monotonic())
            if isinstance(action, Idle):
                await self._wait(action.until)
                continue
            async with self._acting:
                if not self._closed:
                    await self._perform(action)
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()

    async def close(self) -> None:
        """Revoke the lease, so that the keys vanish at once. Bounded; if etcd is away they expire by themselves.
        Nothing is written afterwards."""
        self._closed = True
        self._wanted.set()
        self._moved.set()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT), self._acting:
                lease = self._machine.lease
                if lease is not None:
                    await self._client.revoke(lease, timeout=_CLOSE_TIMEOUT)
        except (EtcdError, TimeoutError) as error:
            log.warning("lease not revoked, its keys expire by themselves: %s", error or "etcd did not answer")

    async def _wait(self, until: float | None) -> None:
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
                await self._wanted.wait()
        except TimeoutError:
            pass
        self._wanted.clear()

    async def _perform(self, action: Action) -> None:
        began = time.monotonic()
        try:
            await self._carry_out(action)
        except LeaseNotFound as error:
            log.warning("lease lost, registering everything again: %s", error)
            self._machine.lost()
        except EtcdError as error:
            if isinstance(error, DeadlineExceeded):
                # Asked to hurry, an etcd that is slow would never be heard.
                self._timeout = min(self._client.config.timeout, 2 * self._timeout)
            # Said once, not at every attempt.
            if self._trouble != type(error).__name__:
                self._trouble = type(error).__name__
                log.warning("%s to etcd failed, trying again: %s", type(action).__name__.lower(), error)
            self._machine.failed(time.monotonic())
        else:
            if time.monotonic() - began < self._patience:
                self._timeout = self._patience
            if self._trouble:
                log.info("etcd answers again")
                self._trouble = ""

    async def _carry_out(self, action: Action) -> None:
        machine, sent = self._machine, time.monotonic()
        match action:
            case Grant(ttl):
                machine.granted(sent, await self._client.grant(ttl, timeout=self._timeout))
                self._regranted_at, self._granted = (sent if self._granted else None), True
            case Renew(lease):
                machine.renewed(sent, await self._client.keep_alive(lease, timeout=self._timeout))
            case Write(lease, changes):
                operations = [_operation(key, value, lease) for key, value in changes.items()]
                outcome = await self._client.transact((), operations, timeout=self._timeout)
                effective = any(value is not None for value in changes.values())
                effective = effective or any(result.deleted for result in outcome.results)
                machine.written(action, outcome.header, effective=effective)
            case Audit(lease, keys):
                revision, found = await self._read(keys)
                attached = (await self._client.time_to_live(lease, timeout=self._timeout)).keys
                repaired = machine.audited(action, found, attached, revision)
                if repaired:
                    log.warning("etcd held something else than was written; repairing %s", _shortened(repaired))
            case SpotCheck(lease, expected):
                compares = [Compare(key, Target.VALUE, value) for key, value in expected.items()]
                compares += [Compare(key, Target.LEASE, lease) for key in expected]
                outcome = await self._client.transact(compares, (), timeout=self._timeout)
                machine.looked(action, good=outcome.succeeded)

    async def _read(self, keys: Collection[str]) -> tuple[int, list[KeyValue]]:
        """These keys, as far as they exist, and the store's revision when the first of them was read."""
        gets = [Get(key) for key in sorted(keys)]
        first, found = 0, list[KeyValue]()
        for start in range(0, max(1, len(gets)), MAX_OPERATIONS):
            outcome = await self._client.transact((), gets[start : start + MAX_OPERATIONS], timeout=self._timeout)
            first = first or outcome.revision
            found.extend(entry for result in outcome.results for entry in result.entries)
        return first, found


def _operation(key: str, value: bytes | None, lease: int) -> Operation:
    return Delete(key) if value is None else Put(key, value, lease)


def _shortened(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
