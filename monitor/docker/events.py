"""What the engine's events mean for the monitor. Pure.

Invariant: an event says only *that* a container is to be looked at, never what it is like: events may be lost, repeated
or late, and the inspection after one is as new as the event or newer. So any order of events ends in what a list shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CONTAINER = frozenset(
    {"create", "start", "die", "stop", "restart", "pause", "unpause", "health_status", "rename", "update", "destroy"}
)
"""Not `exec_*` (each run of a health check makes three), `attach`, `top` and the like. `kill` is only a signal."""
_NETWORK = frozenset({"connect", "disconnect"})


def to_look_at(event: Mapping[str, Any]) -> str:
    """The id of the container that an event of `GET /events` makes worth a look; empty: none."""
    actor = event.get("Actor") or {}
    # "health_status: unhealthy", with the news behind the colon.
    action = str(event.get("Action", "")).partition(":")[0]
    match event.get("Type"):
        case "container" if action in _CONTAINER:
            return str(actor.get("ID", ""))
        case "network" if action in _NETWORK:
            return str((actor.get("Attributes") or {}).get("container", ""))
        case _:
            return ""
