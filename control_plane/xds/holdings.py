"""What one client has of one type, name by name. Invariant: a copy, so that another thread may read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from control_plane.xds.subscription import Subscription


class Stage(Enum):
    """How far a name is that is not settled."""

    DUE = "DUE"
    """Not sent yet, or not since it changed."""
    SENT = "SENT"
    """Sent, and not answered yet."""
    REFUSED = "REFUSED"


@dataclass(frozen=True, slots=True)
class Unsettled:
    """One name. `refused` is the version that the client has refused and not got over since; None: none."""

    stage: Stage
    refused: str | None


@dataclass(frozen=True, slots=True)
class Holdings:
    """One type. The client wants `names`, and for a wildcard all that there are. A name of these that is not among
    `unsettled` is with the client as the table has it, or absent as in the table."""

    wildcard: bool
    names: frozenset[str]
    unsettled: Mapping[str, Unsettled]
    last_error: str


def holdings(subscription: Subscription) -> Holdings:
    """Costs the names that the client named, and what is unsettled."""
    unsettled = {}
    for name, item in subscription.items.items():
        if item.due is not None:
            stage = Stage.DUE
        elif item.flying:
            stage = Stage.SENT
        elif item.refused is not None:
            stage = Stage.REFUSED
        else:
            continue
        unsettled[name] = Unsettled(stage, item.refused)
    names = frozenset(subscription.names)
    return Holdings(subscription.wildcard, names, unsettled, subscription.counters.last_error)
