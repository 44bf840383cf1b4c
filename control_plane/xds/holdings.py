"""How one type stands on one stream, in figures and name by name. Invariant: a copy, for another thread to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from control_plane.xds.events import TypeStatus
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
    """One name. `refused` is the version that the client has refused and not got over since (None: none), and `why`
    what it said."""

    stage: Stage
    refused: str | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Holdings:
    """One type. The client wants `names`, and for a wildcard all that there are. A name of these that is not among
    `unsettled` is with the client as the table has it, or absent as in the table."""

    wildcard: bool
    names: frozenset[str]
    unsettled: Mapping[str, Unsettled]


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
        unsettled[name] = Unsettled(stage, item.refused, item.why)
    return Holdings(subscription.wildcard, frozenset(subscription.names), unsettled)


def type_status(subscription: Subscription) -> TypeStatus:
    """Costs what is unsettled."""
    counters, refused = subscription.counters, tuple(subscription.refused())
    return TypeStatus(
        wildcard=subscription.wildcard,
        subscribed=len(subscription.names),
        responses=counters.responses,
        sent=counters.sent,
        removed=counters.removed,
        acked=counters.acked,
        nacked=counters.nacked,
        unanswered=len(subscription.flights),
        outstanding=len(subscription.items),
        refused=refused,
        reasons=tuple(subscription.items[name].why for name in refused),
        last_error=counters.last_error,
        sent_revision=subscription.sent_revision,
        acked_revision=subscription.acked_revision,
        nacked_revision=subscription.nacked_revision,
    )
