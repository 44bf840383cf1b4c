"""Streams, quarantine and resources as JSON. Pure; field names with underscores, as the protobuf messages inside."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf import any_pb2, json_format

from control_plane.resources.resource import Resource
from control_plane.xds.events import StreamStatus, TypeStatus, short_type
from control_plane.xds.quarantine import Key, Quarantined

Document = dict[str, Any]


def dump(document: Any) -> bytes:
    """One line of JSON."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def stream(status: StreamStatus, *, age: float, now: float) -> Document:
    """One stream. `age`: seconds since it connected; `now`: seconds since the epoch."""
    return {
        "node": status.node,
        "cluster": status.cluster,
        "peer": status.peer,
        "client": status.client,
        "view": status.view,
        "protocol": status.variant,
        "service": short_type(status.only_type) if status.only_type else "ADS",
        "connected_since": timestamp(now - age),
        "connected_seconds": round(age, 3),
        "converged_revision": status.converged_revision,
        "types": {short_type(type_url): _type(type_url, one) for type_url, one in sorted(status.types.items())},
    }


def _type(type_url: str, status: TypeStatus) -> Document:
    return {
        "type_url": type_url,
        "wildcard": status.wildcard,
        "subscribed": status.subscribed,
        "responses": status.responses,
        "sent": status.sent,
        "removed": status.removed,
        "acked": status.acked,
        "nacked": status.nacked,
        "unanswered": status.unanswered,
        "outstanding": status.outstanding,
        "sent_revision": status.sent_revision,
        "acked_revision": status.acked_revision,
        "nacked_revision": status.nacked_revision,
        "refused": [{"name": name, "message": why} for name, why in zip(status.refused, status.reasons, strict=True)],
        "last_error": status.last_error,
    }


def quarantined(entries: Mapping[Key, Quarantined]) -> list[Document]:
    """What is quarantined, ordered by model, type and name."""
    rows = [
        {"type": short_type(type_url), "name": name, "model": record.model, **quarantine(record)}
        for (type_url, name), record in entries.items()
    ]
    return sorted(rows, key=lambda row: (row["model"], row["type"], row["name"]))


def quarantine(record: Quarantined) -> Document:
    """Which version was refused, by whom and why, and what is offered instead (null: nothing)."""
    return {
        "version": record.version,
        "last_good_version": record.last_good_version,
        "node": record.node,
        "peer": record.peer,
        "field": record.field,
        "message": record.message,
        "since_revision": record.since_revision,
        "at": timestamp(record.at),
    }


def resource(one: Resource, *, contents: bool = True) -> Document:
    """One resource, and without `contents` only what it is called."""
    document: Document = {"name": one.name, "version": one.version, "model": one.model}
    if contents:
        document["requires"] = sorted(one.requires)
        document["resource"] = message(one.body)
    return document


def message(body: bytes) -> Document:
    """A serialised google.protobuf.Any in protobuf's JSON form; its bytes in base64 if some type in it is unknown."""
    packed = any_pb2.Any.FromString(body)
    try:
        return json_format.MessageToDict(packed, preserving_proto_field_name=True)
    except (TypeError, json_format.Error) as error:
        return {"@type": packed.type_url, "value": base64.b64encode(packed.value).decode(), "error": str(error)}


def listing(head: Document, key: str, documents: Iterable[Document]) -> Iterator[bytes]:
    """A JSON object of `head` and, last, the list `key`: made piece by piece, one element a line, so that a page of
    any length costs neither memory nor a long hold of the interpreter."""
    opening = json.dumps(head, ensure_ascii=False)[:-1].encode()
    yield opening + (b", " if head else b"") + json.dumps(key).encode() + b": ["
    comma = b"\n"
    for document in documents:
        yield comma + dump(document)
        comma = b",\n"
    yield b"\n]}\n" if comma == b",\n" else b"]}\n"
