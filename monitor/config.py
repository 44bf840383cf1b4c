"""How one monitor is set up. Invariant: a MonitorConfig that exists is valid in itself; what it says of the world (that
a file can be read, that a server answers) is found out by `monitor.plan` and at run time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from monitor.memory import memory_beside, parse_memory
from registry.addresses import split_address
from registry.etcd import EtcdConfig
from registry.keys import DEFAULT_PREFIX
from registry.loads import INTERVAL


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """`modelplane monitor [FLAGS] [-- COMMAND …]`; times are in seconds."""

    target: str = field(
        default="",
        metadata={
            "help": "gRPC address of the server to watch; not needed with `-- COMMAND`, whose flags name the port",
            "metavar": "HOST:PORT",
        },
    )
    model: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "a model to watch, in addition to what the server's flags and config file name; with the folder of "
            "its versions the monitor finds the model's warm-up records; repeatable",
            "metavar": "NAME[=BASE_PATH]",
        },
    )
    metrics_listen: str = field(
        default="",
        metadata={
            "help": "address for this monitor's /metrics, such as 0.0.0.0:18081; with --docker of all containers "
            "together",
            "metavar": "HOST:PORT",
        },
    )
    model_config_file: Path | None = field(
        default=None,
        metadata={
            "help": "the server's own --model_config_file, for a server that runs already; watched for change",
            "metavar": "FILE",
        },
    )
    rest_port: int = field(
        default=0,
        metadata={
            "help": "the server's REST port; 0: what its --rest_api_port says, none if attached by address",
            "metavar": "PORT",
        },
    )
    advertise_address: str | None = field(
        default=None,
        metadata={
            "help": "address under which Envoy reaches the server; default: the target's host, and for one on this "
            "machine the address from which this machine reaches etcd",
            "metavar": "HOST",
        },
    )
    instance: str | None = field(
        default=None,
        metadata={"help": "name of this instance in the fleet; default ADDRESS:PORT", "metavar": "NAME"},
    )
    zone: str = field(default="", metadata={"help": "where the instance is, for routing near by", "metavar": "ZONE"})
    capacity: int = field(
        default=1,
        metadata={"help": "share of the load relative to the other instances, 1 to 1000000", "metavar": "WEIGHT"},
    )
    manage: bool = field(
        default=False,
        metadata={
            "help": "also load and unload models, as `modelplane apply` wants it; a server that is started with -- and "
            "names no model starts without any. Without this flag the server is only watched"
        },
    )
    disk_elsewhere: bool = field(
        default=False,
        metadata={
            "help": "with --manage: the server's disk can't be seen from here under the same paths. Then policies have "
            "to name `specific` versions, and a path that is missing there keeps the server from loading anything"
        },
    )
    label: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "what policies select this instance by, such as gpu=a100; repeatable",
            "metavar": "NAME=VALUE",
        },
    )
    memory: str = field(
        default="",
        metadata={
            "help": "memory for models, such as 8GiB, by which models are placed; default: the limit of the container, "
            "else the machine's, where this monitor can tell",
            "metavar": "SIZE",
        },
    )
    load_interval: float = field(
        default=INTERVAL,
        metadata={
            "help": "how often the server's Prometheus page is read (on its REST port, if it was started with a "
            "--monitoring_config_file) for the figures of `modelplane get instances`; 0: never",
            "metavar": "SECONDS",
        },
    )
    prefix: str = field(
        default=DEFAULT_PREFIX,
        metadata={"help": "prefix of all of the fleet's keys in etcd", "metavar": "PREFIX"},
    )
    lease_ttl: float = field(
        default=10.0,
        metadata={"help": "how long the instance stays registered after its monitor died", "metavar": "SECONDS"},
    )
    poll_interval: float = field(
        default=0.1,
        metadata={
            "help": "pause between two looks at a model's status while something changes on it; always, if there are "
            "at most 5",
            "metavar": "SECONDS",
        },
    )
    poll_slowest: float = field(
        default=5.0,
        metadata={
            "help": "longest pause between two looks at the status of a model on which nothing changes",
            "metavar": "SECONDS",
        },
    )
    poll_rate: float = field(
        default=500.0,
        metadata={
            "help": "at most this many status calls a second for all models together (about 0.3 ms of CPU each); "
            "a tenth of it is used while nothing changes, or what --poll-slowest demands",
            "metavar": "CALLS",
        },
    )
    poll_deadline: float = field(
        default=2.0,
        metadata={"help": "deadline of one status call", "metavar": "SECONDS"},
    )
    probe_deadline: float = field(
        default=30.0,
        metadata={
            "help": "deadline of the Predict that proves a model; a first one may have to compile",
            "metavar": "SECONDS",
        },
    )
    reprove_interval: float = field(
        default=10.0,
        metadata={
            "help": "pause between two Predicts that see whether a ready version still answers; longer for slow ones, "
            "and with many, see --reprove-rate",
            "metavar": "SECONDS",
        },
    )
    reprove_rate: float = field(
        default=2.0,
        metadata={"help": "at most this many of these a second, for all versions together", "metavar": "CALLS"},
    )
    drain_deadline: float = field(
        default=30.0,
        metadata={
            "help": "longest wait on SIGTERM until every Envoy has turned away and nothing is in flight; give the "
            "container's stop timeout some seconds more",
            "metavar": "SECONDS",
        },
    )
    stop_grace: float = field(
        default=10.0,
        metadata={"help": "time between SIGTERM and SIGKILL for an owned server", "metavar": "SECONDS"},
    )
    etcd: EtcdConfig = field(default_factory=EtcdConfig)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise ValueError that names the field and the mend."""
        _check_address("target", self.target, "127.0.0.1:8500")
        _check_address("metrics_listen", self.metrics_listen, "0.0.0.0:18081")
        for text in self.model:
            if not text.partition("=")[0]:
                raise ValueError(f"model {text!r}: the name is empty; write NAME or NAME=BASE_PATH")
        if not 0 <= self.rest_port <= 65535:
            raise ValueError(f"rest_port {self.rest_port}: a TCP port is between 1 and 65535 (0: none)")
        if not 1 <= self.capacity <= 1_000_000:
            raise ValueError(f"capacity {self.capacity}: must be between 1 and 1000000")
        self._check_placing()
        if self.load_interval and not INTERVAL <= self.load_interval < float("inf"):
            raise ValueError(f"load_interval {self.load_interval}: must be at least {INTERVAL:g}, or 0 for never")
        for name, low in {
            "lease_ttl": 1.0,
            "poll_interval": 0.005,
            "poll_slowest": 0.005,
            "poll_rate": 1.0,
            "poll_deadline": 0.01,
            "probe_deadline": 0.01,
            "reprove_interval": 0.1,
            "reprove_rate": 0.01,
            "drain_deadline": 0.0,
            "stop_grace": 0.0,
        }.items():
            value = getattr(self, name)
            if not low <= value < float("inf"):
                raise ValueError(f"{name} {value}: must be at least {low:g}")

    def _check_placing(self) -> None:
        for text in self.label:
            name, equals, _ = text.partition("=")
            if not name or not equals:
                raise ValueError(f"label {text!r}: write NAME=VALUE, for example gpu=a100")
        try:
            parse_memory(self.memory or "0")
        except ValueError as error:
            raise ValueError(f"memory {error}") from None

    @property
    def labels(self) -> dict[str, str]:
        """The labels by name; of one that is given twice the last counts."""
        return {name: value for name, _, value in (text.partition("=") for text in self.label)}

    def memory_bytes(self, *, owned: bool) -> int:
        """Bytes for models beside this monitor; `owned`: it started the server. 0: unknown."""
        if self.memory:
            return parse_memory(self.memory)
        return memory_beside(shared=owned) if owned or self._is_here else 0

    @property
    def _is_here(self) -> bool:
        host = split_address(self.target)[0] if self.target else ""
        return host == "localhost" or host.startswith("127.") or host == "::1"


def _check_address(name: str, text: str, example: str) -> None:
    if text:
        try:
            split_address(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; write HOST:PORT, for example {example}") from None
