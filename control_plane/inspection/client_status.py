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
from control_plane.resources.wire import bytes_field, varint
from control_plane.xds.holdings import Holdings, Stage
from control_plane.xds.quarantine import Key, Quarantined
from control_plane.xds.table import Entry, ResourceTable

# Field numbers of ClientStatusResponse, ClientConfig and GenericXdsConfig.
_CONFIG = 1
_NODE, _GENERIC_XDS_CONFIGS = 1, 3
_XDS_CONFIG = 4
_LENGTH_DELIMITED = 2

_CLIENT = config_dump_shared_pb2.ClientResourceStatus
_STATUS = {
    Stage.DUE: (csds_pb2.NOT_SENT, _CLIENT.REQUESTED),
    Stage.SENT: (csds_pb2.STALE, _CLIENT.REQUESTED),
    Stage.REFUSED: (csds_pb2.ERROR, _CLIENT.NACKED),
}
_PAUSE_EVERY = 200


@dataclass(frozen=True, slots=True)
class Offered:
    """One table at one moment: its entries by type URL and name, what is quarantined, and what was refused of that."""

    entries: Mapping[str, Mapping[str, Entry]]
    quarantined: Mapping[Key, Quarantined]
    refused: Mapping[Key, Resource]

    @classmethod
    def of(cls, table: ResourceTable) -> Offered:
        """A copy of the references."""
        quarantined = dict(table.quarantined)
        offered = {key: table.offered(*key) for key in quarantined}
        refused = {key: resource for key, resource in offered.items() if resource is not None}
        return cls({type_url: dict(table.entries(type_url)) for type_url in table.types()}, quarantined, refused)

    def named(self, type_url: str) -> Mapping[str, Entry]:
        """The entries of one type by name."""
        return self.entries.get(type_url, {})


@dataclass(frozen=True, slots=True)
class Client:
    """One stream at one moment: who, what it holds, and the table that it is served from."""

    node: base_pb2.Node
    peer: str
    types: Mapping[str, Holdings]
    offered: Offered

    def names(self, type_url: str) -> Iterable[str]:
        """The names of a type that it wants, or still has to be told something about."""
        held = self.types[type_url]
        wanted = {*held.names, *held.unsettled}
        if held.wildcard:
            wanted.update(self.offered.named(type_url))
            wanted.update(name for kind, name in self.offered.quarantined if kind == type_url)
        return sorted(wanted)


def response(clients: Iterable[Iterable[Client]], *, contents: bool) -> bytes:
    """A serialised ClientStatusResponse; what stands together is told as one client with several streams."""
    parts: list[bytes] = []
    for streams in clients:
        config = list(_config(streams, contents=contents))
        # The field's head by hand, for put together once more the whole would be copied once more.
        parts += (varint(_CONFIG << 3 | _LENGTH_DELIMITED), varint(sum(map(len, config))), *config)
    return b"".join(parts)


def _config(streams: Iterable[Client], *, contents: bool) -> Iterator[bytes]:
    for at, client in enumerate(streams):
        if not at:
            yield bytes_field(_NODE, client.node.SerializeToString())
        for number, one in enumerate(_configs(client, contents=contents)):
            yield bytes_field(_GENERIC_XDS_CONFIGS, one)
            if number % _PAUSE_EVERY == 0:
                time.sleep(0)  # lets the event loop have the interpreter


def _configs(client: Client, *, contents: bool) -> Iterator[bytes]:
    for type_url, held in sorted(client.types.items()):
        entries = client.offered.named(type_url)
        for name in client.names(type_url):
            entry = entries.get(name)
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
    record = client.offered.quarantined.get((type_url, name))
    if state is not None:
        message.config_status, message.client_status = _STATUS[state.stage]
    elif resource is not None:
        message.config_status, message.client_status = csds_pb2.SYNCED, _CLIENT.ACKED
    elif record is not None:
        # Withheld: it is there, but nobody is sent it.
        message.config_status, message.client_status = csds_pb2.NOT_SENT, _CLIENT.REQUESTED
    else:
        message.config_status, message.client_status = csds_pb2.SYNCED, _CLIENT.DOES_NOT_EXIST
    refused = state.refused if state is not None else None
    if refused is None and record is not None and (record.node, record.peer) == (client.node.id, client.peer):
        # It may have the last good version by now, but it is the one that refused the newest.
        refused = record.version
    if refused is not None:
        if state is None or state.stage is Stage.REFUSED:
            message.config_status, message.client_status = csds_pb2.ERROR, _CLIENT.NACKED
        of_record = record is not None and record.version == refused
        message.error_state.version_info = refused
        message.error_state.details = state.why if state and state.refused else record.message if record else ""
        body = client.offered.refused[type_url, name] if of_record else resource
        if body is not None and body.version == refused:
            message.error_state.failed_configuration.CopyFrom(any_pb2.Any.FromString(body.body))
    return message
