"""One Envoy resource, serialised once and shared by every stream that is sent it.

Invariant: `version` is a hash of `body` and of nothing else, so replicas that have seen the same registry revision hold
equal versions, and a reconnecting Envoy is sent nothing that it already has.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from control_plane.resources.wire import bytes_field, string_field

if TYPE_CHECKING:
    from google.protobuf.message import Message

_HOST = "type.googleapis.com/"
_API = f"{_HOST}envoy.config"
LISTENER = f"{_API}.listener.v3.Listener"
ROUTE_CONFIGURATION = f"{_API}.route.v3.RouteConfiguration"
CLUSTER = f"{_API}.cluster.v3.Cluster"
CLUSTER_LOAD_ASSIGNMENT = f"{_API}.endpoint.v3.ClusterLoadAssignment"
EXTENSION_CONFIG = f"{_API}.core.v3.TypedExtensionConfig"


class Resource(NamedTuple):
    """`body` is the serialised google.protobuf.Any. `requires` names the clusters that must be usable on an Envoy
    before this resource may be sent to it; `model` is the model that caused it, empty for what belongs to all."""

    # A tuple, like the table's Entry and Change: a cold start makes eight per model, and frozen dataclasses take four
    # times as long.

    type_url: str
    name: str
    version: str
    body: bytes
    model: str = ""
    requires: frozenset[str] = frozenset()


def pack(name: str, message: Message, *, model: str = "", requires: frozenset[str] = frozenset()) -> Resource:
    """Serialise a message deterministically. Map fields are sorted by key, so equal content is equal bytes."""
    serialised = message.SerializeToString(deterministic=True)
    return pack_bytes(_HOST + message.DESCRIPTOR.full_name, name, serialised, model=model, requires=requires)


def pack_bytes(
    type_url: str, name: str, serialised: bytes, *, model: str = "", requires: frozenset[str] = frozenset()
) -> Resource:
    """The same for a message that is serialised already."""
    body = _any_of(type_url) + bytes_field(2, serialised)
    version = blake2b(body, digest_size=8).hexdigest()
    return Resource(type_url, name, version, body, model, requires)


@lru_cache(maxsize=64)
def _any_of(type_url: str) -> bytes:
    """The first field of an Any."""
    return string_field(1, type_url)
