"""Where a container's server is reached, by this monitor and by Envoy. Pure.

The first of these that there is, for Envoy has to reach it too:
1. an address in a network that the operator named, in the order of the flags;
2. an address in a network that the monitor's own container is in; for a monitor on the host itself, a published port
   under the advertised address if one was given, else the container's address in any bridge network;
3. a published port under the advertised address.
A container in the host's network has the host's address.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from monitor.docker.container import Container
from monitor.docker.refusal import Reason, Refused

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class View:
    """From where the monitor looks: `own` is the container that it runs in, None if it runs on the host; `networks` are
    those of the flags; `bridges` those that the host reaches; `advertise` the address under which Envoy finds it."""

    own: Container | None = None
    networks: tuple[str, ...] = ()
    bridges: frozenset[str] = frozenset()
    advertise: str = ""

    @property
    def on_host(self) -> bool:
        """Whether it shares the host's network."""
        return self.own is None or self.own.network_mode == "host"


@dataclass(frozen=True, slots=True)
class Place:
    """`advertise`: register this address in place of `host`; None: `host` itself, where the monitor polls too."""

    host: str
    port: int
    rest_port: int
    advertise: str | None = None


def places(holder: Container, port: int, rest_port: int, view: View) -> tuple[Place, ...]:
    """All places where the server can be reached, the best first. `holder` is the container that holds the network.
    Raises Refused if there is none."""
    if holder.network_mode == "host":
        return (_on_host(port, rest_port, view),)
    inside = [Place(holder.networks[name], port, rest_port) for name in _shared(holder, view)]
    outside = list(_published(holder, port, rest_port, view))
    chosen = outside + inside if view.on_host and not view.networks else inside + outside
    if not chosen:
        raise Refused(Reason.NO_ADDRESS, _why(holder, port, view))
    return tuple(chosen)


def _on_host(port: int, rest_port: int, view: View) -> Place:
    if view.on_host:
        return Place("127.0.0.1", port, rest_port, view.advertise or None)
    if view.advertise:
        return Place(view.advertise, port, rest_port, view.advertise)
    text = "it is in the host's network, and this monitor in a container; give --advertise-address"
    raise Refused(Reason.NO_ADDRESS, text)


def _shared(holder: Container, view: View) -> Iterable[str]:
    if view.networks:
        wanted: Iterable[str] = view.networks
    elif view.on_host:
        wanted = sorted(view.bridges)
    else:
        wanted = sorted(view.own.networks) if view.own else ()
    return (name for name in wanted if name in holder.networks)


def _published(holder: Container, port: int, rest_port: int, view: View) -> Iterable[Place]:
    if not view.advertise:
        return
    if found := _host_port(holder, port, view.advertise):
        rest = _host_port(holder, rest_port, view.advertise) if rest_port else 0
        yield Place(view.advertise, found, rest, view.advertise)


def _host_port(holder: Container, port: int, advertise: str) -> int:
    for address, host_port in holder.published.get(port, ()):
        # Published on loopback it is for this host alone, and on one address for whoever asks that one.
        if address in ("", "0.0.0.0", "::", advertise) or (address in _LOOPBACK and advertise in _LOOPBACK):
            return host_port
    return 0


def _why(holder: Container, port: int, view: View) -> str:
    its = f"it is in {_listed(holder.networks)}"
    if view.networks:
        here = f"--docker-network names {_listed(view.networks)}"
    elif view.on_host:
        here = "none of these is a bridge of this host"
    else:
        here = f"this monitor is in {_listed(view.own.networks if view.own else ())}"
    if view.advertise:
        return f"{its}, {here}, and its port {port} is not published where {view.advertise} reaches it"
    return f"{its}, and {here}; join a network of both, or publish its port {port} and give --advertise-address"


def _listed(networks: Iterable[str]) -> str:
    return ", ".join(sorted(networks)) or "no network"
