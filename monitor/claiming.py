"""How a monitor claims its instance (registry/claims.py), and what it does when a newer one has.

Two supervisors that each restart a monitor of the same instance name at different servers would take the claim from
each other for ever. So a claim counts how often in a row it went to another address while its holder lived, and whoever
is about to do that once more waits first: 2, 4, 8 … up to LONGEST_WAIT seconds, in which the holder serves undisturbed.
A holder that is gone, or whose server takes no connection, is not waited for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Collection
from datetime import UTC, datetime

from monitor.predecessor import answers
from registry.addresses import join_address, split_address
from registry.claims import SLACK, Claim, Claimant, decode_claim
from registry.etcd import EtcdClient, EtcdError, Get
from registry.keys import ClaimKey, InstanceKey, Keyspace, PlaneKey
from registry.records import RecordError, decode_plane, decode_ready
from registry.transactions import MAX_OPERATIONS

log = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
LINGER = 5.0
"""Seconds that requests in flight are given once no Envoy sends new ones: nobody counts them for an endpoint that is
gone from the registry."""
_SHORTEST_LEASE = 2.0
"""Seconds; etcd grants no shorter one with its default election timeout."""
_LOOK = 0.5


def make_claimant(keyspace: Keyspace, instance: str, address: str, lease_ttl: float) -> Claimant:
    """The claim of this run; `address`: HOST:PORT of the server that it watches."""
    claim = Claim(
        secrets.token_hex(8),
        host=socket.gethostname(),
        pid=os.getpid(),
        since=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        address=address,
    )
    return Claimant(keyspace.make(ClaimKey(instance)), claim, max(lease_ttl, _SHORTEST_LEASE) + SLACK)


def wait_before(held: Claim | None, address: str) -> float:
    """Seconds to wait before a claim is taken for a server at `address` from one who holds it and lives."""
    if held is None or held.address == address or not held.contested:
        return 0.0
    return min(2.0 ** min(held.contested, 32), LONGEST_WAIT)


async def wait_for_turn(etcd: EtcdClient, claimant: Claimant) -> None:
    """Wait as long as `wait_before` says and the holder's server is there. Not at all if etcd can't be asked."""
    clock = asyncio.get_running_loop().time
    began, said = clock(), False
    while True:
        held = await _held(etcd, claimant.key)
        wait = wait_before(held, claimant.claim.address)
        if held is None or clock() - began >= wait or not await _serves(held):
            return
        if not said:
            said = True
            log.error(
                "%s goes to and fro between servers, %d times by now; held by %s; waiting %g s before it is taken for "
                "%s. If both are meant to run give each an --instance of its own",
                *(claimant.key, held.contested, held, wait, claimant.claim.address),
            )
        await asyncio.sleep(min(1.0, wait))


async def _held(etcd: EtcdClient, key: str) -> Claim | None:
    try:
        entry = await etcd.get(key)
        return decode_claim(entry.value) if entry is not None else None
    except (EtcdError, RecordError):
        return None


async def _serves(held: Claim) -> bool:
    try:
        host, port = split_address(held.address)
    except ValueError:
        return False
    return await answers(host, port)


async def turned_away(
    etcd: EtcdClient, keyspace: Keyspace, instance: str, ready: Collection[str], address: str
) -> None:
    """Returns when none of these readiness keys, which were a superseded monitor's, leads to its server at `address`
    any more, every control plane's Envoys have acknowledged that, and LINGER seconds have passed since."""
    while True:
        if await _is_turned_away(etcd, keyspace, instance, ready, address):
            break
        await asyncio.sleep(_LOOK)
    log.info("instance %s: no Envoy sends to %s any more", instance, address)
    await asyncio.sleep(LINGER)


async def _is_turned_away(
    etcd: EtcdClient, keyspace: Keyspace, instance: str, ready: Collection[str], address: str
) -> bool:
    try:
        # The newer monitor writes its own record with every change of its keys, so a deletion is no newer than that.
        gets = [Get(keyspace.make(InstanceKey(instance))), *map(Get, sorted(ready))]
        revision = 0
        for start in range(0, len(gets), MAX_OPERATIONS):
            outcome = await etcd.transact((), gets[start : start + MAX_OPERATIONS])
            for entry in (entry for result in outcome.results for entry in result.entries):
                revision = max(revision, entry.mod_revision)
                if entry.key in ready:
                    record = decode_ready(entry.value)
                    if join_address(record.address, record.grpc_port) == address:
                        return False
        planes = (await etcd.list(keyspace.planes)).entries
        records = [decode_plane(entry.value) for entry in planes if isinstance(keyspace.parse(entry.key), PlaneKey)]
        return all(record.converged_revision >= revision for record in records)
    except (EtcdError, RecordError) as error:
        log.debug("instance %s: whether Envoy has turned away can't be read: %s", instance, error)
        return False
