"""One container as the engine tells of it. Pure. Invariant: what is not there, or not of the expected type, reads as
empty: an engine of another age must not end the monitor.

The shape is that of `GET /containers/{id}/json` of the Docker Engine API (1.41), which is also `docker inspect`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_SHARED_NETWORK = "container:"


@dataclass(frozen=True, slots=True)
class Container:
    """`networks`: name to this container's IP address there. `published`: TCP port in the container to the (host IP,
    port) pairs that lead to it. `health`: Docker's word, empty without a health check. `run`: when it was started,
    which tells one run of a container from the next. `memory`: its limit in bytes, 0: none."""

    id: str
    name: str
    image: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    status: str = ""
    paused: bool = False
    exit_code: int = 0
    run: str = ""
    health: str = ""
    health_output: str = ""
    network_mode: str = ""
    networks: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[int, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    memory: int = 0

    @property
    def alive(self) -> bool:
        """Whether its processes are there, frozen or not."""
        return self.status in ("running", "paused")

    @property
    def network_of(self) -> str:
        """The id (or name) of the container whose network it uses; empty: it has its own."""
        return self.network_mode.removeprefix(_SHARED_NETWORK) if _SHARED_NETWORK in self.network_mode else ""


def read_container(inspection: Mapping[str, Any]) -> Container:
    """A container of the engine's JSON."""
    config, state = _object(inspection, "Config"), _object(inspection, "State")
    network = _object(inspection, "NetworkSettings")
    health = _object(state, "Health")
    log = health.get("Log") or [{}]
    pairs = (str(text).partition("=") for text in config.get("Env") or ())
    return Container(
        id=str(inspection.get("Id", "")),
        name=str(inspection.get("Name", "")).removeprefix("/"),
        image=str(config.get("Image", "")),
        labels={str(name): str(value) for name, value in _object(config, "Labels").items()},
        environment={name: value for name, _, value in pairs},
        command=(*_words(config.get("Entrypoint")), *_words(config.get("Cmd"))),
        status=str(state.get("Status", "")),
        paused=bool(state.get("Paused")),
        exit_code=int(state.get("ExitCode") or 0),
        run=str(state.get("StartedAt", "")),
        health="" if health.get("Status") == "none" else str(health.get("Status", "")),
        health_output=" ".join(str(log[-1].get("Output", "")).split()),
        network_mode=str(_object(inspection, "HostConfig").get("NetworkMode", "")),
        networks=_addresses(_object(network, "Networks")),
        published=_published(_object(network, "Ports")),
        memory=int(_object(inspection, "HostConfig").get("Memory") or 0),
    )


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = parent.get(name)
    return found if isinstance(found, Mapping) else {}


def _words(found: str | Sequence[str] | None) -> tuple[str, ...]:
    return (found,) if isinstance(found, str) else tuple(str(word) for word in found or ())


def _addresses(networks: Mapping[str, Any]) -> dict[str, str]:
    found = {name: one.get("IPAddress") or one.get("GlobalIPv6Address") for name, one in networks.items() if one}
    return {name: str(address) for name, address in found.items() if address}


def _published(ports: Mapping[str, Any]) -> dict[int, tuple[tuple[str, int], ...]]:
    published = {}
    for port, bindings in ports.items():
        number, _, protocol = port.partition("/")
        if protocol == "tcp" and bindings:
            published[int(number)] = tuple((str(one.get("HostIp", "")), int(one["HostPort"])) for one in bindings)
    return published
