"""What the log says of a stream's events."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from control_plane.xds.events import Connected, Disconnected, HeldTooLong, Refused, StreamEvent, short_type

log = logging.getLogger(__name__)

SHOWN = 5
"""Names that a log message lists before it says how many more there are."""

REASON = 500
"""Characters of a NACK's message that are logged."""


def tell(event: StreamEvent, who: str = "Envoy") -> None:
    """Log one event. `who`: the kind of client that it is about."""
    match event:
        case Connected():
            log.info("%s %s at %s: connected", who, event.node, event.peer)
        case Disconnected():
            log.info("%s %s at %s: disconnected, %s", who, event.node, event.peer, event.detail)
        case Refused():
            what = "; looking for the one to blame" if event.searching else ""
            log.warning(
                "%s %s refused %s %s%s: %s",
                who,
                event.node,
                short_type(event.type_url),
                _listed(event.names),
                what,
                # Envoy prints the whole resource first, and the reason last.
                event.message if len(event.message) <= REASON else "… " + event.message[-REASON:],
            )
        case HeldTooLong():
            log.warning(
                "%s %s is sent %s %s now, which waited too long for %s",
                who,
                event.node,
                short_type(event.type_url),
                _listed(event.names),
                _listed(event.waiting_for) if event.waiting_for else "its answer",
            )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]) or "nothing that was sent on this stream"
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
