"""How a monitor for a Docker host is set up. Invariant: a DockerConfig that exists is valid in itself."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """`modelplane monitor --docker [FLAGS]`; MonitorConfig's flags hold for every container, where they can."""

    docker: bool = field(
        default=False,
        metadata={
            "help": "watch all containers of this Docker host that carry the label modelplane.enable=true or run the "
            "image tensorflow/serving; needs the extra 'docker'"
        },
    )
    docker_url: str | None = field(
        default=None,
        metadata={
            "help": "where the engine listens; default: DOCKER_HOST, else unix:///var/run/docker.sock",
            "metavar": "URL",
        },
    )
    docker_wait: float | None = field(
        default=None,
        metadata={
            "help": "how long to wait at the start for an engine that has never answered, then end with exit code 2; "
            "default: until one answers",
            "metavar": "SECONDS",
        },
    )
    docker_network: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "network in which Envoy and this monitor reach the containers; default: those of the monitor's own "
            "container, or on the host itself any bridge; repeatable, the first that fits counts",
            "metavar": "NAME",
        },
    )
    docker_host_name: str | None = field(
        default=None,
        metadata={
            "help": "name of this host in the instances' names CONTAINER@HOST; default: the engine's own",
            "metavar": "NAME",
        },
    )
    docker_at_exit: str = field(
        default="leave",
        metadata={
            "help": "on SIGTERM leave the instances registered for --lease-ttl, so that the next monitor takes them "
            "over without a gap, or drain them all",
            "metavar": "leave|drain",
            "choices": ("leave", "drain"),
        },
    )

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise ValueError that names the field and the mend."""
        if self.docker_url is not None and "://" not in self.docker_url:
            raise ValueError(f"docker_url {self.docker_url!r}: write unix:///path/to/docker.sock or tcp://HOST:PORT")
        if self.docker_wait is not None and not 0 <= self.docker_wait <= 86400:
            raise ValueError(f"docker_wait {self.docker_wait:g}: must be between 0 and 86400 s; leave it out for ever")
        if self.docker_host_name == "":
            raise ValueError("docker_host_name: it is empty; leave it out for the engine's own name")
        if self.docker_at_exit not in ("leave", "drain"):
            raise ValueError(f"docker_at_exit {self.docker_at_exit!r}: is neither leave nor drain")
