"""Leases. Invariant: a lease that etcd no longer knows is LeaseNotFound, never a TTL of 0."""

from __future__ import annotations

import math

from registry.etcd.connection import Connection, Method
from registry.etcd.errors import LeaseNotFound
from registry.etcd.model import Lease, decode_key, header
from registry.pb import etcd_pb2 as pb

_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantResponse)
_REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeResponse)
_KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse)
_TIME_TO_LIVE = Method("/etcdserverpb.Lease/LeaseTimeToLive", pb.LeaseTimeToLiveResponse)


class LeaseCalls:
    """etcd's Lease service."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def grant(self, ttl: float, *, timeout: float | None = None) -> Lease:
        """A new lease of at least `ttl` seconds (etcd counts whole seconds and has a minimum). Raises EtcdError."""
        # Repeated without harm: a lease granted twice has no keys and expires.
        request = pb.LeaseGrantRequest(TTL=math.ceil(ttl))
        response = await self._connection.call(_GRANT, request, idempotent=True, timeout=timeout)
        return Lease(response.ID, response.TTL, header(response.header))

    async def revoke(self, lease: int, *, timeout: float | None = None) -> None:
        """End a lease; its keys are deleted. Raises LeaseNotFound, EtcdError."""
        await self._connection.call(_REVOKE, pb.LeaseRevokeRequest(ID=lease), idempotent=True, timeout=timeout)

    async def keep_alive(self, lease: int, *, timeout: float | None = None) -> Lease:
        """Start a lease's time anew. Raises LeaseNotFound, EtcdError."""
        timeout = self._connection.config.timeout if timeout is None else timeout
        # A stream per renewal: one every few seconds is cheap, and there is none that could hang unnoticed.
        async with self._connection.stream(_KEEP_ALIVE) as stream:
            response = await stream.ask(pb.LeaseKeepAliveRequest(ID=lease), timeout)
            if response.TTL <= 0:
                raise LeaseNotFound(f"etcd at {stream.address}: lease {lease:x} expired or was revoked")
        return Lease(response.ID, response.TTL, header(response.header))

    async def time_to_live(self, lease: int, *, timeout: float | None = None) -> Lease:
        """What is left of a lease, and its keys. Raises LeaseNotFound, EtcdError."""
        request = pb.LeaseTimeToLiveRequest(ID=lease, keys=True)
        response = await self._connection.call(_TIME_TO_LIVE, request, idempotent=True, timeout=timeout)
        if response.TTL < 0:
            raise LeaseNotFound(f"lease {lease:x} expired or was revoked")
        return Lease(response.ID, response.TTL, header(response.header), tuple(map(decode_key, response.keys)))
