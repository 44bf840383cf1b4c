"""Keys and values. Invariant: a Listing shows one revision, however many pages it took."""

from __future__ import annotations

from collections.abc import Iterable

from registry.etcd.connection import Connection, Method
from registry.etcd.errors import Compacted
from registry.etcd.model import (
    Compare,
    KeyValue,
    Listing,
    Operation,
    Outcome,
    Status,
    compare_message,
    encode_key,
    header,
    key_value,
    operations,
    outcome,
    prefix_range,
)
from registry.pb import etcd_pb2 as pb

_RANGE = Method("/etcdserverpb.KV/Range", pb.RangeResponse)
_PUT = Method("/etcdserverpb.KV/Put", pb.PutResponse)
_DELETE = Method("/etcdserverpb.KV/DeleteRange", pb.DeleteRangeResponse)
_TXN = Method("/etcdserverpb.KV/Txn", pb.TxnResponse)
_STATUS = Method("/etcdserverpb.Maintenance/Status", pb.StatusResponse, leaderless=True)

_PAGE = 2_000
_LISTS_OVERTAKEN = 5
"""How often a list may be started again because the compactor overtook it."""


class KeyValueCalls:
    """etcd's KV service, and a member's status."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, key: str) -> KeyValue | None:
        """One key, as the cluster's majority has it; None if there is none. Raises EtcdError."""
        response = await self._connection.call(_RANGE, pb.RangeRequest(key=encode_key(key)), idempotent=True)
        return key_value(response.kvs[0]) if response.kvs else None

    async def list(self, prefix: str, *, revision: int = 0) -> Listing:
        """All keys under a prefix at one revision (0: the newest). Raises Compacted and FutureRevision if a revision is
        asked for that etcd no longer or not yet has, and EtcdError."""
        for _ in range(_LISTS_OVERTAKEN):
            try:
                return await self._list(prefix, revision)
            except Compacted:
                if revision:
                    raise
        return await self._list(prefix, revision)

    async def _list(self, prefix: str, revision: int) -> Listing:
        start, end = prefix_range(prefix)
        entries: list[KeyValue] = []
        while True:
            request = pb.RangeRequest(key=start, range_end=end, limit=_PAGE, revision=revision)
            response = await self._connection.call(_RANGE, request, idempotent=True)
            revision = revision or response.header.revision
            entries.extend(map(key_value, response.kvs))
            if not response.more:
                return Listing(revision, tuple(entries))
            start = response.kvs[-1].key + b"\0"

    async def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        """Write a key; the revision. Raises LeaseNotFound, EtcdError; after Unavailable it may or may not be written
        unless the error's `sent` is false."""
        request = pb.PutRequest(key=encode_key(key), value=value, lease=lease)
        response = await self._connection.call(_PUT, request, idempotent=False, timeout=timeout)
        return response.header.revision

    async def delete(self, key: str, *, timeout: float | None = None) -> int:
        """Delete a key, whether it is there or not; the revision. Raises EtcdError."""
        request = pb.DeleteRangeRequest(key=encode_key(key))
        response = await self._connection.call(_DELETE, request, idempotent=False, timeout=timeout)
        return response.header.revision

    async def transact(
        self,
        compares: Iterable[Compare],
        success: Iterable[Operation],
        failure: Iterable[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> Outcome:
        """If all comparisons hold do `success`, else `failure`, in one revision. Raises TooLarge beyond 128 comparisons
        or operations, LeaseNotFound, EtcdError; after Unavailable with `sent` read again what happened."""
        request = pb.TxnRequest(
            compare=[compare_message(compare) for compare in compares],
            success=operations(success),
            failure=operations(failure),
        )
        read_only = all(_reads(operation) for operation in (*request.success, *request.failure))
        return outcome(await self._connection.call(_TXN, request, idempotent=read_only, timeout=timeout))

    async def status(self, *, timeout: float | None = None) -> Status:
        """The current member's own state. Raises EtcdError."""
        response = await self._connection.call(_STATUS, pb.StatusRequest(), idempotent=True, timeout=timeout)
        return Status(response.version, response.dbSize, response.leader != 0, header(response.header))


def _reads(operation: pb.RequestOp) -> bool:
    return operation.HasField("request_range")
