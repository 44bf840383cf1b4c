"""Spells an instance record so that etcd takes it, and not too often. Pure. Invariant: the result is at most `limit`
bytes, and what can't be served is left out last: it is what a reader looks for."""

from __future__ import annotations

from dataclasses import replace

from registry.records import Condition, InstanceRecord, Proof, Servable, ServableState, encode_instance

MOST_CONDITIONS = 50
LIMIT = 1_000_000
"""Bytes; etcd refuses requests of more than 1.5 MiB, and other keys have to fit in too."""
_SHORT = 80
SMALL = 8192
BYTES_PER_SECOND = 65_536


def encode_bounded(record: InstanceRecord, limit: int = LIMIT) -> bytes:
    """The record as it is if it fits; else with short texts; else with as many servables as fit, and a word on it."""
    record = replace(record, conditions=_most(record.conditions))
    encoded = encode_instance(record)
    if len(encoded) <= limit:
        return encoded
    servables = sorted((_shortened(servable) for servable in record.servables), key=_served)
    kept = len(servables)
    while True:
        left_out = len(servables) - kept
        remark = f"{left_out} servables are not listed here, there are too many" if left_out else ""
        detail = "; ".join(text for text in (remark, record.detail[:1000]) if text)
        shown = sorted(servables[:kept], key=lambda servable: (servable.model, -servable.version))
        encoded = encode_instance(replace(record, detail=detail, servables=tuple(shown)))
        if len(encoded) <= limit or not kept:
            return encoded
        kept = kept * 3 // 4


def _most(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """A base path that a thousand models share can be missing; the first few tell the story."""
    if len(conditions) <= MOST_CONDITIONS:
        return conditions
    more = len(conditions) - MOST_CONDITIONS
    # The leader decides by what is final.
    conditions = tuple(sorted(conditions, key=lambda condition: not condition.final))
    return (*conditions[:MOST_CONDITIONS], Condition("More", f"{more} conditions are not listed here"))


def _shortened(servable: Servable) -> Servable:
    return replace(servable, error=servable.error[:_SHORT], proof_detail=servable.proof_detail[:_SHORT])


def _served(servable: Servable) -> bool:
    return servable.state is ServableState.AVAILABLE and servable.proof in (Proof.PROVED, Proof.TRUSTED)


class PacedRecord:
    """The record of an instance with many models names them all, and while these load one after another it would be
    written anew for each: 14 MB for 1,000 models. So one of more than SMALL bytes is written at BYTES_PER_SECOND at
    most; a new state of the instance, or another of its conditions, is told at once. The readiness keys never wait."""

    def __init__(self) -> None:
        self._waiting: InstanceRecord | None = None
        self._urgent = False
        self._told: InstanceRecord | None = None
        self._next = 0.0

    def offer(self, record: InstanceRecord) -> None:
        """This is what shall be told next."""
        told = self._told
        urgent = told is None or (told.state, told.conditions) != (record.state, record.conditions)
        self._waiting, self._urgent = record, urgent

    def due(self) -> float | None:
        """When `take` next has something; None: there is nothing to tell."""
        if self._waiting is None:
            return None
        return 0.0 if self._urgent else self._next

    def take(self, now: float) -> bytes | None:
        """The record to write now, if any."""
        due = self.due()
        if self._waiting is None or due is None or due > now:
            return None
        encoded = encode_bounded(self._waiting)
        self._told, self._waiting = self._waiting, None
        self._next = now + (len(encoded) / BYTES_PER_SECOND if len(encoded) > SMALL else 0.0)
        return encoded
