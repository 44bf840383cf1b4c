"""One client's configuration as CSDS tells it. Pure; envoy/service/status/v3/csds.proto.

Invariant: `config_status` is the server's view, of the version that the client is to have: SYNCED if it has
acknowledged it, STALE if it was sent, NOT_SENT if it is due, ERROR if it was refused. Serialised piece by piece, so
that the interpreter is never held for as long as 100,000 resources take.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from envoy.admin.v3 import config_dump_shared_pb2
from envoy.config.core.v3 import base_pb2
from envoy.service.status.v3 import csds_pb2
from google.protobuf import any_pb2

from control_plane.resources.resource import Resource
from control_plane.resources.wire import bytes_field
from control_plane.xds.holdings import Holdings, Stage

# Field numbers of ClientStatusResponse, ClientConfig and GenericXdsConfig.
_CONFIG = 1
_NODE, _GENERIC_XDS_CONFIGS = 1, 3
_XDS_CONFIG = 4

_CLIENT = config_dump_shared_pb2.ClientResourceStatus
_STATUS = {
    Stage.DUE: (csds_pb2.NOT_SENT, _CLIENT.REQUESTED),
    Stage.SENT: (csds_pb2.STALE, _CLIENT.REQUESTED),
    Stage.REFUSED: (csds_pb2.ERROR, _CLIENT.NACKED),
}
_PAUSE_EVERY = 200


@dataclass(frozen=True, slots=True)
class Offered:
    """One table at one moment: type URL -> name -> resource, and what is quarantined of it by (type URL, name)."""

    resources: Mapping[str, Mapping[str, Any]]
    quarantined: Mapping[tuple[str, str], Any]


@dataclass(frozen=True, slots=True)
class Client:
    """One stream at one moment: who, what it holds, and the table that it is served from."""

    node: base_pb2.Node
    types: Mapping[str, Holdings]
    offered: Offered

    def names(self, type_url: str) -> Iterable[str]:
        """The names of a type that it wants, or still has to be told something about."""
        held = self.types[type_url]
        known = self.offered.resources.get(type_url, {}) if held.wildcard else ()
        return sorted({*held.names, *held.unsettled, *known})


def response(clients: Iterable[Iterable[Client]], *, contents: bool) -> bytes:
    """A serialised ClientStatusResponse; what stands together is told as one client with several streams."""
    return b"".join(bytes_field(_CONFIG, _config(streams, contents=contents)) for streams in clients)


def _config(streams: Iterable[Client], *, contents: bool) -> bytes:
    parts: list[bytes] = []
    for client in streams:
        if not parts:
            parts.append(bytes_field(_NODE, client.node.SerializeToString()))
        for number, one in enumerate(_configs(client, contents=contents)):
            parts.append(bytes_field(_GENERIC_XDS_CONFIGS, one))
            if number % _PAUSE_EVERY == 0:
                time.sleep(0)  # lets the event loop have the interpreter
    return b"".join(parts)


def _configs(client: Client, *, contents: bool) -> Iterator[bytes]:
    for type_url, held in sorted(client.types.items()):
        resources = client.offered.resources.get(type_url, {})
        for name in client.names(type_url):
            entry = resources.get(name)
            resource = None if entry is None else entry.resource
            message = _one(client, type_url, name, held, resource)
            serialised = message.SerializeToString()
            if contents and resource is not None:
                # A resource's body is the google.protobuf.Any that the field holds.
                serialised += bytes_field(_XDS_CONFIG, resource.body)
            yield serialised


def _one(client: Client, type_url: str, name: str, held: Holdings, resource: Resource | None) -> Any:
    message = csds_pb2.ClientConfig.GenericXdsConfig(type_url=type_url, name=name)
    if resource is not None:
        message.version_info = resource.version
    state = held.unsettled.get(name)
    if state is None:
        message.config_status = csds_pb2.SYNCED
        message.client_status = _CLIENT.ACKED if resource is not None else _CLIENT.DOES_NOT_EXIST
    else:
        message.config_status, message.client_status = _STATUS[state.stage]
    refused = state.refused if state is not None else None
    quarantined = client.offered.quarantined.get((type_url, name))
    if refused is None and quarantined is not None and quarantined.node == client.node.id:
        # It has the last good version by now, but it is the one that refused the newest.
        refused = quarantined.version
    if refused is None:
        return message
    if state is None or state.stage is Stage.REFUSED:
        message.config_status, message.client_status = csds_pb2.ERROR, _CLIENT.NACKED
    error = message.error_state
    error.version_info = refused
    known = quarantined is not None and quarantined.version == refused
    error.details = quarantined.message if quarantined and known else held.last_error
    if resource is not None and resource.version == refused:
        error.failed_configuration.CopyFrom(any_pb2.Any.FromString(resource.body))
    return message
