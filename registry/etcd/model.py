"""etcd's data as plain values. Invariant: keys are str and any bytes in them survive the round trip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

from registry.pb import etcd_pb2 as pb


class KeyValue(NamedTuple):
    """One key at one revision. `version` counts the puts since it was created; `lease` 0: none."""

    # A tuple, because a list makes tens of thousands at once, and a frozen dataclass takes twice as long.

    key: str
    value: bytes
    mod_revision: int
    create_revision: int = 0
    version: int = 0
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys under a prefix as they were at `revision`, in order of key."""

    revision: int
    entries: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """A key was put (`value` is its new value) or deleted (`value` None) at `revision`."""

    revision: int
    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Header:
    """What every answer of etcd says of the cluster: which one, in which term of its leader, at which revision."""

    cluster_id: int
    raft_term: int
    revision: int


class Target(Enum):
    """What of a key a comparison looks at. VERSION 0: the key does not exist."""

    VERSION = pb.Compare.VERSION
    CREATE_REVISION = pb.Compare.CREATE
    MOD_REVISION = pb.Compare.MOD
    VALUE = pb.Compare.VALUE
    LEASE = pb.Compare.LEASE


class Result(Enum):
    """How it must compare."""

    EQUAL = pb.Compare.EQUAL
    NOT_EQUAL = pb.Compare.NOT_EQUAL
    GREATER = pb.Compare.GREATER
    LESS = pb.Compare.LESS


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction; `value` is bytes for Target.VALUE and int for all others."""

    key: str
    target: Target
    value: int | bytes
    result: Result = Result.EQUAL


def absent(key: str) -> Compare:
    """The key does not exist."""
    return Compare(key, Target.VERSION, 0)


def unchanged(key: str, mod_revision: int) -> Compare:
    """The key was last modified at `mod_revision`; 0: it does not exist."""
    return Compare(key, Target.MOD_REVISION, mod_revision)


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key, or all keys under it."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key, or all keys under it, at the transaction's revision."""

    key: str
    prefix: bool = False


Operation: TypeAlias = Put | Delete | Get


@dataclass(frozen=True, slots=True)
class OperationResult:
    """What one operation did: the entries that a Get read, the number of keys that a Delete deleted."""

    entries: tuple[KeyValue, ...] = ()
    deleted: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Which branch ran, the store's revision after it, and each operation's result in order."""

    succeeded: bool
    revision: int
    results: tuple[OperationResult, ...]
    header: Header


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease and the whole seconds it has left (`ttl`), and what the answer said of the cluster."""

    id: int
    ttl: int
    header: Header
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """One member: etcd's version, its database's bytes, whether it sees a leader."""

    version: str
    db_size: int
    has_leader: bool
    header: Header


def encode_key(key: str) -> bytes:
    """A key as etcd stores it."""
    # Somebody else's key under our prefix may be any bytes; it must not stop a list or a watch.
    return key.encode("utf-8", "surrogateescape")


def decode_key(raw: bytes) -> str:
    """The reverse of `encode_key`."""
    return raw.decode("utf-8", "surrogateescape")


def range_end(prefix: bytes) -> bytes:
    """The first key after all keys with `prefix`; etcd reads b"\\0" as "to the end" (rpc.proto, RangeRequest)."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """`key` and `range_end` that cover every key under `prefix`; an empty prefix covers all keys."""
    raw = encode_key(prefix)
    return raw or b"\0", range_end(raw)


def key_value(kv: pb.KeyValue) -> KeyValue:
    """A KeyValue of the wire."""
    return KeyValue(decode_key(kv.key), kv.value, kv.mod_revision, kv.create_revision, kv.version, kv.lease)


def events(response: pb.WatchResponse) -> tuple[Event, ...]:
    """A watch response's events, in etcd's order: by revision."""
    return tuple(
        Event(event.kv.mod_revision, decode_key(event.kv.key), event.kv.value if event.type == pb.Event.PUT else None)
        for event in response.events
    )


def header(raw: pb.ResponseHeader) -> Header:
    """A ResponseHeader of the wire."""
    return Header(raw.cluster_id, raw.raft_term, raw.revision)


def compare_message(compare: Compare) -> pb.Compare:
    """A Compare for the wire."""
    message = pb.Compare(key=encode_key(compare.key), target=compare.target.value, result=compare.result.value)
    match compare.target, compare.value:
        case Target.VALUE, bytes(value):
            message.value = value
        case Target.VERSION, int(number):
            message.version = number
        case Target.CREATE_REVISION, int(number):
            message.create_revision = number
        case Target.MOD_REVISION, int(number):
            message.mod_revision = number
        case Target.LEASE, int(number):
            message.lease = number
        case target, value:
            raise TypeError(f"a comparison with {target.name} takes no {type(value).__name__}")
    return message


def operation_message(operation: Operation) -> pb.RequestOp:
    """An operation for the wire."""
    match operation:
        case Put(key, value, lease):
            return pb.RequestOp(request_put=pb.PutRequest(key=encode_key(key), value=value, lease=lease))
        case Delete(key, prefix):
            start, end = prefix_range(key) if prefix else (encode_key(key), b"")
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=start, range_end=end))
        case Get(key, prefix):
            start, end = prefix_range(key) if prefix else (encode_key(key), b"")
            return pb.RequestOp(request_range=pb.RangeRequest(key=start, range_end=end))


def outcome(response: pb.TxnResponse) -> Outcome:
    """A transaction's answer."""
    return Outcome(
        response.succeeded,
        response.header.revision,
        tuple(_result(operation) for operation in response.responses),
        header(response.header),
    )


def _result(response: pb.ResponseOp) -> OperationResult:
    if response.HasField("response_range"):
        return OperationResult(entries=tuple(map(key_value, response.response_range.kvs)))
    return OperationResult(deleted=response.response_delete_range.deleted)


def operations(items: Iterable[Operation]) -> list[pb.RequestOp]:
    """Operations for the wire."""
    return [operation_message(item) for item in items]
