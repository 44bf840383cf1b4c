"""What a control plane is told: by flag, environment or file (modelplane/options.py reads the metadata)."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field

from control_plane.resources.settings import DataPlaneSettings
from registry.etcd import EtcdConfig
from registry.keys import DEFAULT_PREFIX


def _default_replica() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


@dataclass(frozen=True, slots=True)
class ControlPlaneConfig:
    """One control-plane replica. Times in seconds."""

    etcd: EtcdConfig = field(default_factory=EtcdConfig)
    prefix: str = field(default=DEFAULT_PREFIX, metadata={"help": "prefix of the fleet's keys in etcd"})
    replica: str = field(
        default_factory=_default_replica,
        metadata={"help": "this replica's name in the registry; unique among the control planes (default: HOST-PID)"},
    )
    xds_listen: str = field(
        default="0.0.0.0:18000", metadata={"help": "address for Envoys (xDS and load reports)", "metavar": "HOST:PORT"}
    )
    http_listen: str = field(
        default="0.0.0.0:18080",
        metadata={"help": "address for /healthz, /readyz and /metrics", "metavar": "HOST:PORT"},
    )
    lease_ttl: float = field(
        default=10.0, metadata={"help": "lifetime of this replica's lease in etcd", "metavar": "SECONDS"}
    )
    lost_lease_grace: float = field(
        default=10.0,
        metadata={
            "help": "how long an instance whose lease was lost is used on before it is left out",
            "metavar": "SECONDS",
        },
    )
    settle_time: float = field(
        default=3.0,
        metadata={
            "help": "after a start, wait this long for Envoys to come back before claiming that they have converged",
            "metavar": "SECONDS",
        },
    )
    data_plane: DataPlaneSettings = field(default_factory=DataPlaneSettings)

    def __post_init__(self) -> None:
        for name in ("xds_listen", "http_listen"):
            host, _, port = getattr(self, name).rpartition(":")
            if not host or not port.isdigit() or int(port) > 65535:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not HOST:PORT, for example 0.0.0.0:18000")
        for name in ("lease_ttl", "lost_lease_grace", "settle_time"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative; give a number of seconds")
        if self.lease_ttl < 2:
            raise ValueError(f"lease_ttl: {self.lease_ttl} is too short to be renewed in time; give at least 2 seconds")
        if not self.replica:
            raise ValueError("replica: the name is empty; leave it out for HOST-PID")
