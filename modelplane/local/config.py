"""What `modelplane up` is told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from registry.etcd import EtcdConfig
from registry.keys import DEFAULT_PREFIX


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports of the stack; 0 is any free one."""

    grpc: int = field(
        default=8500, metadata={"flag": "--grpc-port", "metavar": "PORT", "help": "Envoy: gRPC clients connect here"}
    )
    rest: int = field(
        default=8501, metadata={"flag": "--rest-port", "metavar": "PORT", "help": "Envoy: REST clients connect here"}
    )
    admin: int = field(default=9901, metadata={"flag": "--admin-port", "metavar": "PORT", "help": "Envoy: admin pages"})
    xds: int = field(
        default=18000, metadata={"flag": "--xds-port", "metavar": "PORT", "help": "control plane: Envoy connects here"}
    )
    http: int = field(
        default=18080, metadata={"flag": "--http-port", "metavar": "PORT", "help": "control plane: health and metrics"}
    )
    # Nobody but our own processes needs it, and 2379 may well be another etcd's.
    etcd: int = field(default=0, metadata={"flag": "--etcd-port", "metavar": "PORT", "help": "etcd, if `up` starts it"})

    def __post_init__(self) -> None:
        for name in self.__slots__:
            number = getattr(self, name)
            if not 0 <= number <= 65535:
                raise ValueError(f"--{name}-port: {number} is no TCP port; give 1 to 65535, or 0 for any free one")


@dataclass(frozen=True, slots=True)
class UpConfig:
    """The local stack."""

    model: tuple[str, ...] = field(
        default=(),
        metadata={
            "metavar": "NAME=PATH",
            "separator": None,
            "help": "serve this model instead of the examples; PATH holds version folders: PATH/1/saved_model.pb",
        },
    )
    instances: int = field(default=2, metadata={"metavar": "N", "help": "model servers, each with a monitor"})
    manage: bool = field(
        default=False,
        metadata={
            "help": "start the servers empty and load what policies want (`modelplane apply`); for each model there is "
            "one to begin with in the state folder"
        },
    )
    instance_label: tuple[str, ...] = field(
        default=(),
        metadata={
            "metavar": "INSTANCE:NAME=VALUE",
            "help": "with --manage, what policies select an instance by, such as tfs-0:gpu=a100; repeatable",
        },
    )
    server: str = field(
        default="auto",
        metadata={
            "choices": ("auto", "tensorflow", "stand-in"),
            "help": "tensorflow: tensorflow_model_server from PATH; stand-in: `modelplane model-server`; auto: the "
            "first where there is one",
        },
    )
    state: Path = field(
        default=Path(".modelplane"),
        metadata={"metavar": "FOLDER", "help": "the one folder with all state: logs, etcd's data, example models"},
    )
    keep: bool = field(default=False, metadata={"help": "keep etcd's data of the last run"})
    client: bool = field(default=True, metadata={"help": "run the example client once when the examples are served"})
    listen: str = field(
        default="127.0.0.1",
        metadata={
            "metavar": "IP",
            "help": "where clients reach gRPC and REST, without authentication. All else stays on 127.0.0.1, but for "
            "tensorflow_model_server, which listens everywhere",
        },
    )
    etcd: str | None = field(
        default=None,
        metadata={"metavar": "HOST:PORT", "help": "use this etcd, which runs already, instead of starting one"},
    )
    prefix: str = field(
        default=DEFAULT_PREFIX, metadata={"metavar": "PREFIX", "help": "prefix of the fleet's keys in etcd"}
    )
    ports: Ports = field(default_factory=Ports, metadata={"help": "ports (0: any free one)"})

    def __post_init__(self) -> None:
        if not 1 <= self.instances <= 64:
            raise ValueError(f"--instances: {self.instances} is not between 1 and 64")
        self._check_labels()
        try:
            ipaddress.ip_address(self.listen)
        except ValueError:
            raise ValueError(f"--listen: {self.listen!r} is no IP address; 0.0.0.0 is every interface") from None
        if self.etcd is not None:
            try:
                EtcdConfig((self.etcd,))
            except ValueError:
                raise ValueError(f"--etcd: {self.etcd!r} is not HOST:PORT, for example 127.0.0.1:2379") from None

    def _check_labels(self) -> None:
        for text in self.instance_label:
            name, colon, label = text.partition(":")
            if not colon or not all(label.partition("=")[:2]):
                raise ValueError(f"--instance-label: {text!r}: write INSTANCE:NAME=VALUE, for example tfs-0:gpu=a100")
            if name not in self.names:
                raise ValueError(f"--instance-label: {text!r}: the instances are {', '.join(self.names)}")
        if self.instance_label and not self.manage:
            raise ValueError("--instance-label: only managed instances are selected by labels; add --manage")

    @property
    def names(self) -> list[str]:
        """The instances."""
        return [f"tfs-{number}" for number in range(self.instances)]

    def labels(self, instance: str) -> list[str]:
        """Those of one instance, NAME=VALUE."""
        return [text.partition(":")[2] for text in self.instance_label if text.partition(":")[0] == instance]
