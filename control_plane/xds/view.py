"""The views: which table of resources a client is served from.

Invariant: a stream has one view for its whole life, chosen by its first request; what happens in another view's table
never reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from control_plane.xds.table import ResourceTable

Wanted = Callable[[str, Sequence[str]], None]
GRPC_AGENTS = "gRPC"


def nothing_wanted(type_url: str, names: Sequence[str]) -> None:
    """For a table that holds everything from the beginning."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """`wanted(type_url, names)` is called before a stream takes a request that subscribes to these names (WILDCARD for
    all), so that a table may be filled as it is asked for: what is published from there reaches that stream first.
    `proxies`: the clients are proxies, which report their load."""

    name: str
    table: ResourceTable
    wanted: Wanted = nothing_wanted
    proxies: bool = True


@dataclass(frozen=True, slots=True)
class Client:
    """A client without a proxy: its connection, in gRPC's spelling, and since when (monotonic seconds)."""

    peer: str
    since: float


def is_grpc_client(node: Any) -> bool:
    """Whether a node is a gRPC client without a proxy ("gRPC C-core", "gRPC Java", "gRPC Go", …) (gRFC A27)."""
    return str(node.user_agent_name).startswith(GRPC_AGENTS)
