"""What the catalog says of one model: the only thing that the resource translators read. Immutable and hashable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from registry.policy.model import Balancing, CircuitBreaking, OutlierDetection
from registry.traffic import Mirror


class Health(Enum):
    """How far an endpoint is to be used."""

    READY = "READY"
    DRAINING = "DRAINING"
    """No new requests; it stays listed so that load reports go on naming it until nothing is in flight."""
    SUSPECT = "SUSPECT"
    """Its lease was lost, but the registry's word alone does not take it out: used, under Envoy's outlier detection,
    and checked by the control plane (suspect_checks.py)."""
    UNANSWERED = "UNANSWERED"
    """A suspect that fails its checks: no new requests, for its version has an endpoint that does not. It stays listed
    until its loss is believed, or it answers again."""
    FAILING = "FAILING"
    """Its monitor saw it stop answering, and its version has no better endpoint: used, for the server's own error tells
    a client more than none, and a whole fleet that answers too late must not be taken out as a whole."""


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One instance that holds one version of a model. Ports are TCP; `rest_port` is 0 where there is no REST."""

    instance: str
    address: str
    grpc_port: int
    rest_port: int = 0
    zone: str = ""
    capacity: int = 1
    health: Health = Health.READY


@dataclass(frozen=True, slots=True)
class Traffic:
    """How requests are shared among a model's versions, as the leader resolved it from the model's policy.

    `weights`: parts by version, ascending, of those that have an endpoint to send requests to; empty if none of them
    has, and then nobody answers. `labels`: those that the router resolves; all others are the servers'. `sticky_by`: a
    header whose value decides instead of chance. `mirrors`, `observe` and `compare` as in registry/traffic.py;
    `between`: the two versions that are compared.
    """

    weights: tuple[tuple[int, int], ...]
    labels: tuple[tuple[str, int], ...] = ()
    sticky_by: str = ""
    mirrors: tuple[Mirror, ...] = ()
    observe: float = 0.0
    compare: float = 0.0
    between: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a model's policy says of its clusters. None: the fleet's settings."""

    balancing: Balancing | None = None
    circuit_breaking: CircuitBreaking | None = None
    outlier_detection: OutlierDetection | None = None


@dataclass(frozen=True, slots=True)
class Handling:
    """What a model's policy says of its requests: seconds, attempts after the first, bytes. None: the fleet's
    settings."""

    timeout: float | None = None
    retries: int | None = None
    max_request_bytes: int | None = None
    tuning: Tuning = Tuning()


FLEETS_OWN = Handling()
"""Of a model whose policy says nothing of it, or which has none."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model, fleet-wide.

    `versions` holds every known version, oldest first, with its endpoints sorted by instance; a version that is only
    announced (loading everywhere) has none. `served` is the version that a request which names none gets from the
    whole fleet; None while no version has an endpoint. `pinned`: the router must write `served` into such a request,
    because a server may hold another version too and would answer from its own newest.

    With `traffic`, requests that name no version are shared by its weights. `served` is the heaviest version then, for
    the clients that no router draws for; `pinned`: the router must draw, and write down what it drew.
    """

    name: str
    versions: tuple[tuple[int, tuple[Endpoint, ...]], ...]
    served: int | None
    pinned: bool
    traffic: Traffic | None = None
    handling: Handling = FLEETS_OWN

    def endpoints(self, version: int | None) -> tuple[Endpoint, ...]:
        """The endpoints of one version, or of the served one for None; empty if there are none."""
        wanted = self.served if version is None else version
        return next((endpoints for known, endpoints in self.versions if known == wanted), ())

    def left_over(self) -> tuple[Endpoint, ...]:
        """The endpoints, as DRAINING, of instances that have other versions than the one that is served. They may have
        got requests that name no version a moment ago, when theirs was the one, and load reports name only endpoints
        that are listed: else such a request would go unnoticed when its instance drains."""
        seen = {endpoint.instance for endpoint in self.endpoints(None)}
        found = []
        for version, endpoints in reversed(self.versions):
            if version != self.served:
                found += [replace(one, health=Health.DRAINING) for one in endpoints if one.instance not in seen]
                seen.update(one.instance for one in endpoints)
        return tuple(sorted(found))
