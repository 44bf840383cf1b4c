"""Whether a control plane sent anything that its Envoy had already. Pure: what was said on one stream in, counts out.

The measure: at its first request of a type an Envoy names each resource that it holds, with the version
(`initial_resource_versions`), and from there on it holds what it is sent. A resource is counted as sent again if it
is sent in the version that the Envoy holds and the Envoy didn't ask for it. The one thing that the protocol wants sent
again is counted apart: a cluster's endpoints after the cluster itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT
from control_plane.xds.events import short_type

Key = tuple[str, str]


@dataclass
class Audit:
    """What was sent on one stream, or on several. `again`: unasked for and equal to what the Envoy held, its names in
    `names`. `after_cluster`: endpoints equal to what it held, after their cluster. `removed`: held and taken away."""

    streams: int = 0
    held_at_start: int = 0
    sent: int = 0
    again: int = 0
    after_cluster: int = 0
    removed: int = 0
    refused: int = 0
    names: list[Key] = field(default_factory=list)

    def __iadd__(self, other: Audit) -> Audit:
        self.streams += other.streams
        self.held_at_start += other.held_at_start
        self.sent += other.sent
        self.again += other.again
        self.after_cluster += other.after_cluster
        self.removed += other.removed
        self.refused += other.refused
        self.names += other.names
        return self


class _Stream:
    def __init__(self) -> None:
        self.audit = Audit(streams=1)
        self._held: dict[Key, str] = {}
        self._asked: set[Key] = set()
        self._warming: set[str] = set()

    def request(self, message: Any) -> None:
        kind = message.type_url
        self.audit.refused += message.HasField("error_detail")
        self.audit.held_at_start += len(message.initial_resource_versions)
        for name, version in message.initial_resource_versions.items():
            self._held[kind, name] = version
        for name in message.resource_names_subscribe:
            if name not in message.initial_resource_versions:
                self._asked.add((kind, name))
        for name in message.resource_names_unsubscribe:
            self._held.pop((kind, name), None)
            self._asked.discard((kind, name))

    def response(self, message: Any) -> None:
        kind = message.type_url
        for resource in message.resources:
            self._sent((kind, resource.name), resource.version)
        for name in message.removed_resources:
            self._asked.discard((kind, name))
            self.audit.removed += self._held.pop((kind, name), None) is not None

    def _sent(self, key: Key, version: str) -> None:
        self.audit.sent += 1
        kind, name = key
        if key not in self._asked and self._held.get(key) == version:
            if kind == CLUSTER_LOAD_ASSIGNMENT and name in self._warming:
                self.audit.after_cluster += 1
            else:
                self.audit.again += 1
                self.audit.names.append((short_type(kind), name))
        if kind == CLUSTER:
            self._warming.add(name)
        elif kind == CLUSTER_LOAD_ASSIGNMENT:
            self._warming.discard(name)
        self._held[key] = version
        self._asked.discard(key)


def audit(messages: Iterable[Any]) -> Audit:
    """The audit of one stream, from its requests and responses in their order."""
    stream = _Stream()
    for message in messages:
        if message.DESCRIPTOR.name == "DeltaDiscoveryRequest":
            stream.request(message)
        else:
            stream.response(message)
    return stream.audit
