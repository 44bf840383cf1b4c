"""The protobuf framing of discovery responses around resources that were serialised once.

Invariant: the bytes parse to the message that `envoy.service.discovery.v3` would have written. By hand, because a
message built for every stream would copy and serialise each resource again for each of them.
Field numbers: envoy/service/discovery/v3/discovery.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from control_plane.resources.resource import Resource
from control_plane.resources.wire import string_field, varint

# Field numbers of Resource
_VERSION, _RESOURCE, _NAME = 1, 2, 3
# and of DeltaDiscoveryResponse
_SYSTEM_VERSION_INFO, _RESOURCES, _TYPE_URL, _NONCE, _REMOVED = 1, 2, 4, 5, 6
# and of DiscoveryResponse, whose resources, type and nonce have the same
_VERSION_INFO = 1
_BODY_TAG, _ENTRY_TAG = varint(_RESOURCE << 3 | 2), varint(_RESOURCES << 3 | 2)


def framed_size(resource: Resource) -> int:
    """About how many bytes the resource takes in a response: never less than it really does."""
    return len(resource.body) + 4 * len(resource.name) + len(resource.version) + 24


def _entry(resource: Resource) -> tuple[bytes, bytes]:
    """The entry up to the body, and the body, which is not copied before the response is put together."""
    head = b"".join(
        (
            string_field(_VERSION, resource.version),
            string_field(_NAME, resource.name),
            _BODY_TAG,
            varint(len(resource.body)),
        )
    )
    return _ENTRY_TAG + varint(len(head) + len(resource.body)) + head, resource.body


def delta_response(
    type_url: str, nonce: str, resources: Sequence[Resource], removed: Iterable[str], system_version: str = ""
) -> bytes:
    """A serialised DeltaDiscoveryResponse. `system_version` is for humans who debug; clients must not read it."""
    parts = [string_field(_SYSTEM_VERSION_INFO, system_version)]
    for resource in resources:
        parts += _entry(resource)
    parts += (string_field(_TYPE_URL, type_url), string_field(_NONCE, nonce))
    # A repeated field: unlike a single one, an empty name would have to be there.
    parts += (varint(_REMOVED << 3 | 2) + varint(len(raw)) + raw for raw in (name.encode() for name in removed))
    return b"".join(parts)


def sotw_response(type_url: str, nonce: str, version: str, resources: Iterable[Resource]) -> bytes:
    """A serialised DiscoveryResponse: a resource is its Any."""
    parts = [string_field(_VERSION_INFO, version)]
    for resource in resources:
        parts += (_ENTRY_TAG, varint(len(resource.body)), resource.body)
    parts += (string_field(_TYPE_URL, type_url), string_field(_NONCE, nonce))
    return b"".join(parts)
