"""What the adapter's calls do to the resources that a server has: messages in, an update of the table out.

Invariant: a resource's version is the string that the caller gave it, unlike everywhere else, where it is a hash of the
content: suites assert that they get back the version that they set.
"""

from __future__ import annotations

from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from control_plane.resources.resource import (
    CLUSTER,
    CLUSTER_LOAD_ASSIGNMENT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE_CONFIGURATION,
    Resource,
    pack_bytes,
)
from control_plane.xds.table import ResourceTable, TableChange

MESSAGES: dict[str, Any] = {
    LISTENER: listener_pb2.Listener,
    ROUTE_CONFIGURATION: route_pb2.RouteConfiguration,
    CLUSTER: cluster_pb2.Cluster,
    CLUSTER_LOAD_ASSIGNMENT: endpoint_pb2.ClusterLoadAssignment,
    EXTENSION_CONFIG: extension_pb2.TypedExtensionConfig,
}


class RequestError(ValueError):
    """A call that can't be done; the message says why, `missing` and `existing` which kind of why."""

    def __init__(self, text: str, *, missing: bool = False, existing: bool = False) -> None:
        super().__init__(text)
        self.missing = missing
        self.existing = existing


def name_of(type_url: str, message: Any) -> str:
    """The name that the resource goes by."""
    return message.cluster_name if type_url == CLUSTER_LOAD_ASSIGNMENT else message.name


def nothing(type_url: str, name: str) -> bytes:
    """A resource of this name that holds nothing else, serialised."""
    kind = MESSAGES[type_url]
    message = kind(cluster_name=name) if type_url == CLUSTER_LOAD_ASSIGNMENT else kind(name=name)
    return bytes(message.SerializeToString())


def example(type_url: str, name: str, version: str) -> any_pb2.Any:
    """A resource of this name whose content depends on the version. Made to be carried, not to be used by an Envoy."""
    kind = MESSAGES.get(type_url)
    if kind is None:
        raise RequestError(f"no resources of type {type_url!r} here; there are {', '.join(sorted(MESSAGES))}")
    message = kind(cluster_name=name) if type_url == CLUSTER_LOAD_ASSIGNMENT else kind(name=name)
    match type_url:
        case _ if type_url == LISTENER:
            message.stat_prefix = version
        case _ if type_url == ROUTE_CONFIGURATION:
            message.virtual_hosts.add(name=version, domains=["*"])
        case _ if type_url == CLUSTER:
            message.alt_stat_name = version
        case _ if type_url == CLUSTER_LOAD_ASSIGNMENT:
            message.endpoints.add().locality.zone = version
        case _:
            message.typed_config.type_url = f"example/{version}"
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _resource(packed: any_pb2.Any, version: str) -> Resource:
    kind = MESSAGES.get(packed.type_url)
    if kind is None:
        raise RequestError(f"no resources of type {packed.type_url!r} here; there are {', '.join(sorted(MESSAGES))}")
    try:
        name = name_of(packed.type_url, kind.FromString(packed.value))
    except DecodeError as error:
        raise RequestError(f"a resource that is not a {packed.type_url}: {error}") from None
    made = pack_bytes(packed.type_url, name, packed.value)
    return Resource(made.type_url, made.name, version, made.body)


class State:
    """The table's only writer. Each call is one revision."""

    def __init__(self, table: ResourceTable) -> None:
        self.table = table
        self._versions: dict[str, str] = {}

    def version_of(self, type_url: str) -> str:
        """The version in the last call that changed this type; empty if there was none."""
        return self._versions.get(type_url, "")

    def set(self, packed: list[any_pb2.Any], version: str) -> TableChange:
        """These resources, all of this version, and no others."""
        resources = [_resource(each, version) for each in packed]
        kept = {(resource.type_url, resource.name) for resource in resources}
        gone = [key for key in self._keys() if key not in kept]
        return self._update(resources, gone, version)

    def clear(self) -> TableChange:
        """None at all."""
        return self._update([], self._keys(), "")

    def add(self, type_url: str, name: str, version: str) -> TableChange:
        """One more. Raises RequestError if there is one already."""
        if self.table.get(type_url, name) is not None:
            raise RequestError(f"there is a {type_url} {name!r} already; UpdateResource changes it", existing=True)
        return self._update([_resource(example(type_url, name, version), version)], [], version)

    def change(self, type_url: str, name: str, version: str) -> TableChange:
        """Another content and version for one. Raises RequestError if there is none."""
        self._must_exist(type_url, name)
        return self._update([_resource(example(type_url, name, version), version)], [], version)

    def remove(self, type_url: str, name: str, version: str) -> TableChange:
        """One fewer, in that version of the type (empty: the one before). Raises RequestError if there is none."""
        self._must_exist(type_url, name)
        return self._update([], [(type_url, name)], version or self.version_of(type_url))

    def _must_exist(self, type_url: str, name: str) -> None:
        if self.table.get(type_url, name) is None:
            raise RequestError(f"there is no {type_url} {name!r}; AddResource makes one", missing=True)

    def _keys(self) -> list[tuple[str, str]]:
        return [(type_url, name) for type_url in list(self.table.types()) for name in self.table.entries(type_url)]

    def _update(self, puts: list[Resource], removes: list[tuple[str, str]], version: str) -> TableChange:
        change = self.table.update(puts, removes, self.table.revision + 1)
        self._versions.update((type_url, version) for type_url in [*(put.type_url for put in puts), *dict(removes)])
        self.table.mark_ready()
        return change
