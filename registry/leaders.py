"""Which control plane decides: the value of `leader`, on a lease of its own.

Invariant: whoever writes as the leader compares the revision at which this key was created with the one at which it
took it itself (control_plane/election.py), so that one who does not know yet that another leads writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from registry.fields import read_figure
from registry.records import dump_document, read_document, read_field, read_text


@dataclass(frozen=True, slots=True)
class LeaderRecord:
    """`replica`: as in `planes/<replica>`. `since`: Unix seconds, by that replica's clock."""

    replica: str
    since: float = 0.0


def encode_leader(record: LeaderRecord) -> bytes:
    """Spell it."""
    return dump_document({"replica": record.replica, "since": record.since})


def decode_leader(raw: bytes) -> LeaderRecord:
    """Read it back. Raises RecordError."""
    document = read_document(raw)
    return LeaderRecord(read_field(document, "replica", read_text), read_field(document, "since", read_figure(), 0.0))
