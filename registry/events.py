"""Something that happened: the value of `events/<id>`, for people.

Invariant: keys sort by time, and an event outlives EVENT_TTL by nothing: it is on a lease that nobody renews.
"""

from __future__ import annotations

from dataclasses import dataclass

from registry.fields import read_figure, read_optional_int64
from registry.records import dump_document, read_document, read_field, read_text

EVENT_TTL = 24 * 3600
"""Seconds that an event is kept."""


@dataclass(frozen=True, slots=True)
class Event:
    """`at`: Unix seconds. `kind`: CamelCase. `model`, `instance`, `version`: whom it is about, as far as it is. `text`:
    one line. `by`: the control plane, or USER@HOST."""

    at: float
    kind: str
    model: str = ""
    instance: str = ""
    version: int | None = None
    text: str = ""
    by: str = ""


def event_id(at: float, salt: int) -> str:
    """The `id` of an EventKey: microseconds, and four random hex digits for those of one microsecond."""
    return f"{int(at * 1_000_000) & (2**64 - 1):016x}-{salt & 0xFFFF:04x}"


def encode_event(event: Event) -> bytes:
    """Spell it."""
    return dump_document(
        {
            "at": event.at,
            "kind": event.kind,
            "model": event.model,
            "instance": event.instance,
            **({} if event.version is None else {"version": event.version}),
            "text": event.text,
            "by": event.by,
        }
    )


def decode_event(raw: bytes) -> Event:
    """Read it back. Raises RecordError."""
    document = read_document(raw)
    return Event(
        read_field(document, "at", read_figure()),
        read_field(document, "kind", read_text),
        read_field(document, "model", read_text, ""),
        read_field(document, "instance", read_text, ""),
        read_field(document, "version", read_optional_int64, None),
        read_field(document, "text", read_text, ""),
        read_field(document, "by", read_text, ""),
    )
