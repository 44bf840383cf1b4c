"""What an operator wants for one model, typed. Invariant: a Policy holds only what `read_policy` allows.

Units: shares are 0..1 and percents 0..100; durations are seconds and sizes bytes. None: the operator leaves it to
modelplane, which does as it does for a model without a policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from registry.traffic import Mirror

API_VERSION = "modelplane/v1"
KIND = "Model"


class Balancing(StrEnum):
    """How Envoy chooses among the instances that are ready; the values are the document's."""

    LEAST_REQUEST = "leastRequest"
    ROUND_ROBIN = "roundRobin"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Versions:
    """Which versions are wanted: exactly one of the newest `latest`, `all`, and `specific` ones (ascending)."""

    latest: int | None = 1
    all: bool = False
    specific: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CircuitBreaking:
    """Envoy's limits for the model, per Envoy."""

    max_requests: int | None = None
    max_connections: int | None = None


@dataclass(frozen=True, slots=True)
class OutlierDetection:
    """When Envoy stops asking an instance that answers with errors, for how many seconds (times its ejections), and
    how many percent of the instances at most; 0: none ever."""

    consecutive_errors: int | None = None
    ejection_time: float | None = None
    max_ejection_percent: int | None = None


@dataclass(frozen=True, slots=True)
class Rolling:
    """Load the new version everywhere, switch all traffic at once. `max_loading`: the share of the model's instances
    that may be loading at a time (at least one may); `switch_at`: the share that must be ready before the switch."""

    max_loading: float = 0.25
    switch_at: float = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """`percent` of the requests go to the new version, until both `duration` seconds have passed and it has answered
    `requests` requests; None: not asked for. Both None: as soon as the gates have seen enough."""

    percent: float
    duration: float | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """`share` of the requests are asked of both versions, whose outputs may differ by `tolerance` (`outputs`: another
    one for an output of that name), in `at_most` of the compared requests."""

    share: float = 0.05
    tolerance: float = 0.01
    outputs: Mapping[str, float] = field(default_factory=dict)
    at_most: float = 0.01


@dataclass(frozen=True, slots=True)
class Gates:
    """What takes a canary back. `error_rate`: the share of the new version's answers that may be errors.
    `latency_ratio`: how many times the old version's latency at `latency_quantile` the new one's may be, None: any;
    less than `latency_at_least` seconds is never too slow. Nothing is judged before `min_requests` answers."""

    error_rate: float = 0.01
    latency_quantile: float = 0.99
    latency_ratio: float | None = None
    latency_at_least: float = 0.02
    difference: Difference | None = None
    min_requests: int = 50


@dataclass(frozen=True, slots=True)
class Canary:
    """Load the new version everywhere, then give it traffic in `steps` of rising percents, as long as the `gates`
    hold. After the last step it gets all."""

    steps: tuple[Step, ...]
    gates: Gates = field(default_factory=Gates)


Rollout: TypeAlias = Rolling | Canary


@dataclass(frozen=True, slots=True)
class Policy:
    """One model. `base_path` empty: modelplane neither loads nor unloads it, it only routes. `replicas` None: on all
    managed instances whose labels match `selector`. `follow_latest`: a request that names no version gets the newest
    that the rollout has come to; else one of `weights` (version -> parts). `sticky_by`: a header, lower case, whose
    value decides which of them, empty: chance. `timeout`: seconds; `retries`: how often a request is tried
    again; `paused`: rollouts stay where they are. The `mirror`'s
    model is written out, also where the document names none, which means the policy's own."""

    name: str
    base_path: str = ""
    versions: Versions = field(default_factory=Versions)
    replicas: int | None = None
    selector: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, int] = field(default_factory=dict)
    follow_latest: bool = True
    weights: Mapping[int, int] = field(default_factory=dict)
    sticky_by: str = ""
    mirror: Mirror | None = None
    timeout: float | None = None
    retries: int | None = None
    balancing: Balancing | None = None
    circuit_breaking: CircuitBreaking | None = None
    outlier_detection: OutlierDetection | None = None
    max_request_bytes: int | None = None
    warm_up_requests: int = 0
    rollout: Rollout = field(default_factory=Rolling)
    paused: bool = False

    @property
    def named_versions(self) -> frozenset[int]:
        """The versions that labels, weights or the mirror name: they stay loaded as long as they are named."""
        mirrored = {self.mirror.version} if self.mirror and self.mirror.model == self.name else set()
        weighted = {version for version, parts in self.weights.items() if parts}
        return frozenset({*self.labels.values(), *weighted, *(mirrored - {None})})  # type: ignore[arg-type]
