"""The registry's values. Invariant: `decode(encode(record)) == record`, and fields unknown to this version are ignored.

JSON so that `etcdctl get --prefix` reads well; the published schema is proto/registry/pb/records.proto.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, TypeVar


class RecordError(ValueError):
    """A value in the registry that is not a record of its key's kind; the message names the field."""


class ReadyState(StrEnum):
    """What may be sent to one version of one model on one instance."""

    LOADING = "LOADING"
    """Announced: the server is about to hold it. Not an endpoint yet, but its model is known."""
    READY = "READY"
    """It was seen to answer."""
    FAILING = "FAILING"
    """It answered once, and does not now: an endpoint only where its version has no READY one."""
    DRAINING = "DRAINING"
    """It answers, but is about to stop: no new requests."""
    DRAINED = "DRAINED"
    """It answers, nothing is in flight on it any more, and it is kept so: not an endpoint, but its model is known."""


class InstanceState(StrEnum):
    """What the monitor says of a whole instance."""

    STARTING = "STARTING"
    SERVING = "SERVING"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"
    """An operator had it drained; the server runs on, and it stays so until the operator takes it back."""
    UNREACHABLE = "UNREACHABLE"


class ServableState(StrEnum):
    """TF Serving's own states (get_model_status.proto, ModelVersionStatus.State)."""

    START = "START"
    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


class Proof(StrEnum):
    """Whether a servable that TF Serving calls AVAILABLE was seen to answer a Predict."""

    PENDING = "PENDING"
    PROVED = "PROVED"
    TRUSTED = "TRUSTED"
    """Nothing could be guessed to ask it, so TF Serving's word is taken."""
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Servable:
    """One version of one model on one instance, in `instances/<instance>`."""

    model: str
    version: int
    state: ServableState
    error: str = ""
    proof: Proof = Proof.PENDING
    proof_detail: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """A trouble of an instance that has a name (docs/conditions.md); `text` names what it is about and the mend. It
    holds while it lasts, so it holds no number that counts up. `model`: the one it is about; empty: all of them.
    `version`: the one of them; None: all, or the monitor is older than this field. `final`: nothing is tried any more
    until somebody changes something."""

    name: str
    text: str
    model: str = ""
    version: int | None = None
    final: bool = False


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """`instances/<instance>`. Ports are TCP; `rest_port` 0: no REST is served; capacity is a relative weight.
    `managed`: its monitor loads and unloads what `assignments/<instance>` says; `labels`: what policies select by;
    `memory`: bytes for models, 0: unknown."""

    address: str
    grpc_port: int
    rest_port: int = 0
    zone: str = ""
    capacity: int = 1
    monitor_version: str = ""
    state: InstanceState = InstanceState.STARTING
    detail: str = ""
    servables: tuple[Servable, ...] = ()
    conditions: tuple[Condition, ...] = ()
    managed: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    memory: int = 0


@dataclass(frozen=True, slots=True)
class ReadyRecord:
    """`ready/<model>/<version>/<instance>`: an endpoint, complete in itself, so that one key is one endpoint."""

    state: ReadyState
    address: str
    grpc_port: int
    rest_port: int = 0
    zone: str = ""
    capacity: int = 1
    several_versions: bool = False
    """The server's version policy lets it hold several versions of this model at once, so a request that names no
    version must be pinned before it gets there: the server would answer from whatever it has newest."""


@dataclass(frozen=True, slots=True)
class PlaneRecord:
    """`planes/<replica>`. `converged_revision`: the newest registry revision whose consequences all of this replica's
    Envoys have acknowledged. `envoys`: how many these are, gRPC clients without a proxy among them, with those of the
    latter that were lost a moment ago and may come back. `away`: Envoys that no replica has and that this one waits
    for (control_plane/roll_call.py); several replicas may wait for the same.
    `draining`: requests in flight per draining instance; an instance is listed only once every Envoy has acknowledged
    its draining and has reported its load since. `http`: HOST:PORT of its HTTP port as others reach it; empty where
    the replica is older than this field.
    `servables`: the same by instance and `MODEL@VERSION`, for instances that drain in part; None where the replica is
    older than this field. `behind`: node ids of Envoys and gRPC clients, a few of them, that have kept a drain waiting
    for a while because they have not acknowledged it or not reported since. `suspects`: instances whose leases are lost
    and that are used all the same. `canary`: counts the times that the replica wanted to see a write of its own come
    back through its watch. `xds`: HOST:PORT at which other replicas reach what it serves Envoys; empty as `http`."""

    converged_revision: int
    envoys: int = 0
    version: str = ""
    draining: Mapping[str, int] = field(default_factory=dict)
    http: str = ""
    away: int = 0
    servables: Mapping[str, Mapping[str, int]] | None = None
    behind: tuple[str, ...] = ()
    suspects: int = 0
    canary: int = 0
    xds: str = ""


@dataclass(frozen=True, slots=True)
class Roll:
    """`planes/<replica>/nodes`: the node ids of the Envoys that a replica answers for, one entry for each Envoy.
    `connected` is by connection, which the replica numbers. `away`: those that it or its predecessor had and that
    nobody has now."""

    connected: Mapping[int, str] = field(default_factory=dict)
    away: tuple[str, ...] = ()


T = TypeVar("T")
_REQUIRED: Any = object()


def _read(document: Mapping[str, Any], name: str, convert: Callable[[Any], T], default: Any = _REQUIRED) -> T:
    value = document.get(name, default)
    if value is _REQUIRED:
        raise RecordError(f"field {name!r} is missing")
    try:
        return convert(value)
    except (TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"field {name!r}: {value!r} is not allowed ({error})") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    # JSON can spell half a surrogate pair, which no protobuf message takes. Raises UnicodeEncodeError, a ValueError.
    value.encode()
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("not true or false")
    return value


def _number(low: int, high: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        # proto3 JSON spells a 64-bit number as a string
        number = int(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError("not a whole number")
        if not low <= number <= high:
            raise ValueError(f"not between {low} and {high}")
        return number

    return convert


_PORT, _OPTIONAL_PORT = _number(1, 65535), _number(0, 65535)
_CAPACITY = _number(1, 1_000_000)
_INT64 = _number(0, 2**63 - 1)


def _document(raw: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RecordError(f"not a JSON object but {type(document).__name__}")
    return document


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


read_document, read_field, read_flag, read_int64, read_text = _document, _read, _flag, _INT64, _text
dump_document = _dump
"""For the records that have a file of their own."""


def encode_ready(record: ReadyRecord) -> bytes:
    """Spell a readiness record."""
    return _dump(
        {
            "state": record.state,
            "address": record.address,
            "grpcPort": record.grpc_port,
            "restPort": record.rest_port,
            "zone": record.zone,
            "capacity": record.capacity,
            "severalVersions": record.several_versions,
        }
    )


# An instance says the same of each of its models, so a whole registry holds few different values.
@lru_cache(maxsize=4096)
def decode_ready(raw: bytes) -> ReadyRecord:
    """Read a readiness record. Raises RecordError."""
    document = _document(raw)
    return ReadyRecord(
        state=_read(document, "state", ReadyState),
        address=_read(document, "address", _text),
        grpc_port=_read(document, "grpcPort", _PORT),
        rest_port=_read(document, "restPort", _OPTIONAL_PORT, 0),
        zone=_read(document, "zone", _text, ""),
        capacity=_read(document, "capacity", _CAPACITY, 1),
        several_versions=_read(document, "severalVersions", _flag, default=False),
    )


def encode_instance(record: InstanceRecord) -> bytes:
    """Spell an instance record."""
    return _dump(
        {
            "address": record.address,
            "grpcPort": record.grpc_port,
            "restPort": record.rest_port,
            "zone": record.zone,
            "capacity": record.capacity,
            "monitorVersion": record.monitor_version,
            "state": record.state,
            "detail": record.detail,
            "servables": [
                {
                    "model": servable.model,
                    "version": servable.version,
                    "state": servable.state,
                    "error": servable.error,
                    "proof": servable.proof,
                    "proofDetail": servable.proof_detail,
                }
                for servable in record.servables
            ],
            "conditions": [_encode_condition(condition) for condition in record.conditions],
            "managed": record.managed,
            "labels": dict(sorted(record.labels.items())),
            "memory": record.memory,
        }
    )


def _decode_servable(document: Any) -> Servable:
    return Servable(
        model=_read(document, "model", _text),
        version=_read(document, "version", _INT64),
        state=_read(document, "state", ServableState),
        error=_read(document, "error", _text, ""),
        proof=_read(document, "proof", Proof, Proof.PENDING),
        proof_detail=_read(document, "proofDetail", _text, ""),
    )


def _encode_condition(condition: Condition) -> dict[str, Any]:
    document: dict[str, Any] = {"name": condition.name, "text": condition.text, "model": condition.model}
    if condition.version is not None:
        document["version"] = condition.version
    if condition.final:
        document["final"] = True
    return document


def _decode_condition(document: Any) -> Condition:
    return Condition(
        name=_read(document, "name", _text),
        text=_read(document, "text", _text, ""),
        model=_read(document, "model", _text, ""),
        version=_read(document, "version", lambda value: None if value is None else _INT64(value), None),
        final=_read(document, "final", _flag, default=False),
    )


def decode_instance(raw: bytes) -> InstanceRecord:
    """Read an instance record. Raises RecordError."""
    document = _document(raw)
    return InstanceRecord(
        address=_read(document, "address", _text),
        grpc_port=_read(document, "grpcPort", _PORT),
        rest_port=_read(document, "restPort", _OPTIONAL_PORT, 0),
        zone=_read(document, "zone", _text, ""),
        capacity=_read(document, "capacity", _CAPACITY, 1),
        monitor_version=_read(document, "monitorVersion", _text, ""),
        state=_read(document, "state", InstanceState, InstanceState.STARTING),
        detail=_read(document, "detail", _text, ""),
        servables=_read(document, "servables", lambda rows: tuple(map(_decode_servable, rows)), ()),
        conditions=_read(document, "conditions", lambda rows: tuple(map(_decode_condition, rows)), ()),
        managed=_read(document, "managed", _flag, default=False),
        labels=_read(document, "labels", lambda rows: {_text(name): _text(value) for name, value in rows.items()}, {}),
        memory=_read(document, "memory", _INT64, 0),
    )


def _counts(rows: Any) -> dict[str, int]:
    return {_text(name): _INT64(count) for name, count in rows.items()}


def _counts_by_name(rows: Any) -> dict[str, dict[str, int]] | None:
    return None if rows is None else {_text(name): _counts(row.get("inFlight", {})) for name, row in rows.items()}


def encode_plane(record: PlaneRecord) -> bytes:
    """Spell a control-plane replica's record."""
    document: dict[str, Any] = {
        "convergedRevision": record.converged_revision,
        "envoys": record.envoys,
        "version": record.version,
        "draining": dict(sorted(record.draining.items())),
        "http": record.http,
        "away": record.away,
        "behind": record.behind,
        "suspects": record.suspects,
        "canary": record.canary,
        "xds": record.xds,
    }
    if record.servables is not None:
        rows = sorted(record.servables.items())
        document["servables"] = {name: {"inFlight": dict(sorted(counts.items()))} for name, counts in rows}
    return _dump(document)


def decode_plane(raw: bytes) -> PlaneRecord:
    """Read a control-plane replica's record. Raises RecordError."""
    document = _document(raw)
    return PlaneRecord(
        converged_revision=_read(document, "convergedRevision", _INT64),
        envoys=_read(document, "envoys", _INT64, 0),
        version=_read(document, "version", _text, ""),
        draining=_read(document, "draining", _counts, {}),
        http=_read(document, "http", _text, ""),
        away=_read(document, "away", _INT64, 0),
        servables=_read(document, "servables", _counts_by_name, None),
        behind=_read(document, "behind", lambda names: tuple(map(_text, names)), ()),
        suspects=_read(document, "suspects", _INT64, 0),
        canary=_read(document, "canary", _INT64, 0),
        xds=_read(document, "xds", _text, ""),
    )


def encode_roll(roll: Roll) -> bytes:
    """Spell the list of the Envoys that a replica answers for."""
    connected = sorted(roll.connected.items(), key=lambda entry: (entry[1], entry[0]))
    return _dump({"connected": {str(number): node for number, node in connected}, "away": sorted(roll.away)})


def decode_roll(raw: bytes) -> Roll:
    """Read the list of the Envoys that a replica answers for. Raises RecordError."""
    document = _document(raw)
    return Roll(
        _read(document, "connected", lambda rows: {_INT64(number): _text(node) for number, node in rows.items()}, {}),
        _read(document, "away", lambda rows: tuple(map(_text, rows)), ()),
    )
