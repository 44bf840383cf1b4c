"""What a stream has to tell the operator, and how a stream stands. Data only; the shell logs and counts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from control_plane.resources.resource import (
    CLUSTER,
    CLUSTER_LOAD_ASSIGNMENT,
    EXTENSION_CONFIG,
    LISTENER,
    ROUTE_CONFIGURATION,
)

_SHORT = {
    LISTENER: "LDS",
    ROUTE_CONFIGURATION: "RDS",
    CLUSTER: "CDS",
    CLUSTER_LOAD_ASSIGNMENT: "EDS",
    EXTENSION_CONFIG: "ECDS",
}

SHORT_TYPES = {short: type_url for type_url, short in _SHORT.items()}
"""The services' usual names, each with its type URL."""


def short_type(type_url: str) -> str:
    """The service's usual name, such as `CDS`; the message's name for a type that we don't serve."""
    return _SHORT.get(type_url) or type_url.rpartition(".")[2] or type_url


@dataclass(frozen=True, slots=True)
class Connected:
    """A stream's first request is in. `peer` is gRPC's spelling of the other end."""

    node: str
    peer: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A stream has ended; `detail` says how."""

    node: str
    peer: str
    detail: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A NACK. `names` are all that the response held, empty if the nonce is none of this stream's. Some of them may
    have been applied: Envoy checks a response as a whole, and then applies it cluster by cluster. `searching`: the
    same resources are sent again in parts, until a response of one name tells which is to blame. `version` is that
    one's, empty while that isn't known."""

    node: str
    type_url: str
    names: tuple[str, ...]
    models: tuple[str, ...]
    searching: bool
    code: int
    message: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class Acquitted:
    """An Envoy has acknowledged, or says that it holds, the very version that is quarantined."""

    node: str
    type_url: str
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class HeldTooLong:
    """Something waited for its turn until its deadline and has gone out anyway. `waiting_for` names clusters."""

    node: str
    type_url: str
    names: tuple[str, ...]
    waiting_for: tuple[str, ...]


StreamEvent: TypeAlias = Connected | Disconnected | Refused | Acquitted | HeldTooLong


@dataclass(frozen=True, slots=True)
class TypeStatus:
    """One type on one stream. `subscribed` counts names; `sent` and `removed` count resources, `outstanding` those
    that are not settled; the rest responses. `reasons` are what the client said of each name in `refused`. The three
    revisions are of the registry at the time when the newest response that was sent, ACKed and NACKed was made; 0:
    none was."""

    wildcard: bool
    subscribed: int
    responses: int
    sent: int
    removed: int
    acked: int
    nacked: int
    unanswered: int
    outstanding: int
    refused: tuple[str, ...]
    reasons: tuple[str, ...]
    last_error: str
    sent_revision: int
    acked_revision: int
    nacked_revision: int


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """One stream. `types` is keyed by type URL; `only_type` is empty on an aggregated stream; `variant` is `delta` or
    `sotw`; `view` names the table that it is served from; `client` is its kind and version."""

    node: str
    cluster: str
    peer: str
    connected_at: float
    converged_revision: int
    types: Mapping[str, TypeStatus]
    view: str = "envoy"
    variant: str = "delta"
    only_type: str = ""
    client: str = ""
