"""What an earlier monitor of the same instance left behind, to be read once the claim is held: nobody older changes it
any more. Invariant: only keys that can't be true any more are named stale, and only such as may be true are inherited.

A monitor that was killed leaves its keys until its lease runs out; one that is alive and superseded leaves them too. If
the server goes on at the same address they are the truth, and this monitor takes them over without a gap. If this
monitor has started a server of its own there, they lead to one that is gone. Where they lead to another address, the
server there is asked: if it takes no connection, it is gone.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from registry.etcd import EtcdClient, EtcdError, Get
from registry.keys import InstanceKey, Keyspace, ReadyKey
from registry.records import ReadyRecord, ReadyState, RecordError, decode_instance, decode_ready
from registry.transactions import MAX_OPERATIONS

log = logging.getLogger(__name__)

CONNECT = 1.0
"""Seconds that another server may take to accept a connection."""


@dataclass(frozen=True)
class Remains:
    """`stale` leads nowhere; `here` and `elsewhere` are endpoints, at this monitor's server and at others that live.
    `models`: what this monitor's server may hold."""

    stale: frozenset[ReadyKey] = frozenset()
    here: dict[ReadyKey, ReadyRecord] = field(default_factory=dict)
    elsewhere: dict[ReadyKey, ReadyRecord] = field(default_factory=dict)
    models: frozenset[str] = frozenset()


async def remains(
    etcd: EtcdClient, keyspace: Keyspace, instance: str, endpoint: ReadyRecord, *, new_server: bool
) -> Remains:
    """What is there of the instance's last run; nothing if etcd can't be asked now."""
    try:
        left, models = await _read(etcd, keyspace, instance)
    except (EtcdError, RecordError) as error:
        log.warning("instance %s: what an earlier monitor left can't be read: %s", instance, error)
        return Remains()
    here = {key: record for key, record in left.items() if _place(record) == _place(endpoint)}
    others = {_place(record) for record in left.values()} - {_place(endpoint)}
    living = {place for place in others if await answers(*place)}
    elsewhere = {key: record for key, record in left.items() if _place(record) in living}
    stale = frozenset(left.keys() - elsewhere.keys() - (frozenset() if new_server else here.keys()))
    if stale:
        log.info("instance %s: dropping %d keys of its last run", instance, len(stale))
    if elsewhere:
        log.warning("instance %s: another server of that name is still there, at %s", instance, _told(living))
    if new_server:
        return Remains(stale, {}, _endpoints(elsewhere))
    return Remains(stale, _endpoints(here), _endpoints(elsewhere), models)


async def answers(address: str, port: int) -> bool:
    """Whether anything takes a connection there."""
    try:
        async with asyncio.timeout(CONNECT):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


async def _read(
    etcd: EtcdClient, keyspace: Keyspace, instance: str
) -> tuple[dict[ReadyKey, ReadyRecord], frozenset[str]]:
    entry = await etcd.get(keyspace.make(InstanceKey(instance)))
    if entry is None:
        return {}, frozenset()
    servables = decode_instance(entry.value).servables
    gets = [Get(keyspace.make(ReadyKey(servable.model, servable.version, instance))) for servable in servables]
    found: dict[ReadyKey, ReadyRecord] = {}
    for start in range(0, len(gets), MAX_OPERATIONS):
        outcome = await etcd.transact((), gets[start : start + MAX_OPERATIONS])
        for entry in (entry for result in outcome.results for entry in result.entries):
            key = keyspace.parse(entry.key)
            if isinstance(key, ReadyKey):
                found[key] = decode_ready(entry.value)
    return found, frozenset(servable.model for servable in servables)


def _endpoints(records: dict[ReadyKey, ReadyRecord]) -> dict[ReadyKey, ReadyRecord]:
    states = (ReadyState.READY, ReadyState.FAILING)
    return {key: record for key, record in records.items() if record.state in states}


def _place(record: ReadyRecord) -> tuple[str, int]:
    return record.address, record.grpc_port


def _told(places: set[tuple[str, int]]) -> str:
    return ", ".join(sorted(f"{address}:{port}" for address, port in places))
