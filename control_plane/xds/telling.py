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


def tell(event: StreamEvent) -> None:
    """Log one event."""
    match event:
        case Connected():
            log.info("Envoy %s at %s: connected", event.node, event.peer)
        case Disconnected():
            log.info("Envoy %s at %s: disconnected, %s", event.node, event.peer, event.detail)
        case Refused():
            what = "; looking for the one to blame" if event.searching else ""
            log.warning(
                "Envoy %s refused %s %s%s: %s",
                event.node,
                short_type(event.type_url),
                _listed(event.names),
                what,
                # Envoy prints the whole resource first, and the reason last.
                event.message if len(event.message) <= REASON else "… " + event.message[-REASON:],
            )
        case HeldTooLong():
            log.warning(
                "Envoy %s is sent %s %s now, which waited too long for %s",
                event.node,
                short_type(event.type_url),
                _listed(event.names),
                _listed(event.waiting_for) if event.waiting_for else "its answer",
            )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]) or "nothing that was sent on this stream"
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
