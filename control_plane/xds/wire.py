"""The protobuf framing of a DeltaDiscoveryResponse around resources that were serialised once.

Invariant: the bytes parse to the message that `envoy.service.discovery.v3` would have written. By hand, because a
message built for every stream would copy and serialise each resource again for each of them.
Field numbers: envoy/service/discovery/v3/discovery.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from control_plane.resources.resource import Resource

_LENGTH_DELIMITED = 2


def _tag(field: int) -> bytes:
    return bytes((field << 3 | _LENGTH_DELIMITED,))


# Resource
_VERSION, _RESOURCE, _NAME = _tag(1), _tag(2), _tag(3)
# DeltaDiscoveryResponse
_SYSTEM_VERSION_INFO, _RESOURCES, _TYPE_URL, _NONCE, _REMOVED = _tag(1), _tag(2), _tag(4), _tag(5), _tag(6)


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _text(tag: bytes, text: str) -> bytes:
    raw = text.encode()
    return tag + _varint(len(raw)) + raw


def framed_size(resource: Resource) -> int:
    """About how many bytes the resource takes in a response: never less than it really does."""
    return len(resource.body) + 4 * len(resource.name) + len(resource.version) + 24


def _entry(resource: Resource) -> tuple[bytes, bytes]:
    """The entry up to the body, and the body."""
    head = b"".join(
        (
            _text(_VERSION, resource.version),
            _text(_NAME, resource.name),
            _RESOURCE,
            _varint(len(resource.body)),
        )
    )
    return _RESOURCES + _varint(len(head) + len(resource.body)) + head, resource.body


def delta_response(
    type_url: str, nonce: str, resources: Sequence[Resource], removed: Iterable[str], system_version: str = ""
) -> bytes:
    """A serialised DeltaDiscoveryResponse. `system_version` is for humans who debug; clients must not read it."""
    parts: list[bytes] = []
    if system_version:
        parts.append(_text(_SYSTEM_VERSION_INFO, system_version))
    for resource in resources:
        parts += _entry(resource)
    parts.append(_text(_TYPE_URL, type_url))
    parts.append(_text(_NONCE, nonce))
    parts += (_text(_REMOVED, name) for name in removed)
    return b"".join(parts)
