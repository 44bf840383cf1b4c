"""What a control plane is told: by flag, environment or file (modelplane/options.py reads the metadata)."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

from control_plane.leading import LeadingConfig
from control_plane.resources.settings import DataPlaneSettings
from control_plane.suspects import SuspectPolicy
from registry.addresses import split_address
from registry.etcd import EtcdConfig
from registry.keys import DEFAULT_PREFIX


@dataclass(frozen=True, slots=True)
class ControlPlaneConfig:
    """One control-plane replica. Times in seconds."""

    etcd: EtcdConfig = field(default_factory=EtcdConfig)
    prefix: str = field(default=DEFAULT_PREFIX, metadata={"help": "prefix of the fleet's keys in etcd"})
    replica: str = field(
        default="",
        metadata={"help": "this replica's name in the registry, unique among the control planes; empty: HOST-PID"},
    )
    xds_listen: str = field(
        default="0.0.0.0:18000", metadata={"help": "address for Envoys (xDS and load reports)", "metavar": "HOST:PORT"}
    )
    http_listen: str = field(
        default="0.0.0.0:18080",
        metadata={"help": "address for health, metrics and looking inside", "metavar": "HOST:PORT"},
    )
    http_advertise: str = field(
        default="",
        metadata={
            "help": "where others reach --http-listen; `modelplane get envoys` finds it in the registry; "
            "empty: the address listened on, or where that is every address, this host's own",
            "metavar": "HOST:PORT",
        },
    )
    xds_advertise: str = field(
        default="",
        metadata={
            "help": "where other control planes reach --xds-listen, to pass on load reports of Envoys that this one "
            "configures; empty: as with --http-advertise",
            "metavar": "HOST:PORT",
        },
    )
    lease_ttl: float = field(
        default=10.0, metadata={"help": "lifetime of this replica's lease in etcd", "metavar": "SECONDS"}
    )
    guard: SuspectPolicy = field(default_factory=SuspectPolicy, metadata={"help": "lost leases"})
    empty_registry_grace: float = field(
        default=10.0,
        metadata={
            "help": "after a start with a registry that holds no instance, or of which another control plane says that "
            "it lost leases, wait this long for monitors to register (again) before Envoys are told so; 0 for a fleet "
            "that starts from nothing",
            "metavar": "SECONDS",
        },
    )
    settle_time: float = field(
        default=3.0,
        metadata={
            "help": "after a start, wait this long for Envoys to come back before claiming that they have converged; "
            "a gRPC client without a proxy whose stream ended is waited for as long",
            "metavar": "SECONDS",
        },
    )
    lost_envoy_grace: float = field(
        default=30.0,
        metadata={
            "help": "an Envoy that no control plane has any more is waited for this long: it may still send to what it "
            "was told last, so no drain ends before it is back. Too short, and an Envoy that a busy machine keeps away "
            "sends to an instance that has stopped; long, and an Envoy removed for good delays the drains of that time",
            "metavar": "SECONDS",
        },
    )
    statistics_interval: float = field(
        default=5.0,
        metadata={
            "help": "how often Envoys tell how many requests they have sent where (load reports), for `modelplane "
            "top`, `get instances` and canaries; longer by itself where there are many Envoys and models; 0: never",
            "metavar": "SECONDS",
        },
    )
    metrics_models: int = field(
        default=200,
        metadata={
            "help": "how many versions of models /metrics has requests, errors and latency of, the busiest; all others "
            'are summed as model=""',
            "metavar": "N",
        },
    )
    leading: LeadingConfig = field(default_factory=LeadingConfig, metadata={"help": "carrying out policies"})
    data_plane: DataPlaneSettings = field(default_factory=DataPlaneSettings)

    def __post_init__(self) -> None:
        for name in ("xds_listen", "http_listen", "xds_advertise", "http_advertise"):
            try:
                if not name.endswith("_advertise") or getattr(self, name):
                    split_address(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}, for example 0.0.0.0:18000") from None
        for name, low in (
            ("lease_ttl", 2.0),
            ("empty_registry_grace", 0.0),
            ("settle_time", 0.0),
            ("lost_envoy_grace", 0.0),
            ("statistics_interval", 0.0),
        ):
            if not low <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: {getattr(self, name)} is not possible; give at least {low:g} seconds")

        if not 0 <= self.metrics_models <= 10_000:
            raise ValueError(f"metrics_models: {self.metrics_models} is not between 0 and 10000")

    @property
    def replica_name(self) -> str:
        """The name in the registry."""
        return self.replica or f"{socket.gethostname()}-{os.getpid()}"
