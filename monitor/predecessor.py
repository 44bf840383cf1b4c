"""What an earlier monitor of the same instance left behind. Invariant: only keys that can't be true any more are named.

A monitor that was killed leaves its keys until its lease runs out. If the server goes on at the same address, they are
the truth and the next monitor takes them over without a gap. If this monitor starts a server of its own, or the server
has moved to another port, they lead to one that is not there.
"""

from __future__ import annotations

import logging

from registry.etcd import EtcdClient, EtcdError
from registry.keys import InstanceKey, Keyspace, ReadyKey
from registry.records import InstanceRecord, ReadyRecord, RecordError, decode_instance

log = logging.getLogger(__name__)


async def stale_keys(
    etcd: EtcdClient, keyspace: Keyspace, instance: str, endpoint: ReadyRecord, *, new_server: bool
) -> tuple[str, ...]:
    """The readiness keys to delete before this monitor writes its own; none if etcd can't be asked now."""
    try:
        entry = await etcd.get(keyspace.make(InstanceKey(instance)))
        record = decode_instance(entry.value) if entry is not None else None
    except (EtcdError, RecordError) as error:
        log.warning("instance %s: what an earlier monitor left can't be read: %s", instance, error)
        return ()
    if record is None or (_same_place(record, endpoint) and not new_server):
        return ()
    keys = [ReadyKey(servable.model, servable.version, instance) for servable in record.servables]
    if keys:
        log.info("instance %s: dropping %d keys of its last run", instance, len(keys))
    return tuple(keyspace.make(key) for key in keys)


def _same_place(record: InstanceRecord, endpoint: ReadyRecord) -> bool:
    return (record.address, record.grpc_port) == (endpoint.address, endpoint.grpc_port)
