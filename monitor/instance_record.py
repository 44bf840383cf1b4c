"""Spells an instance record so that etcd takes it. Pure. Invariant: the result is at most `limit` bytes, and what can't
be served is left out last: it is what a reader looks for."""

from __future__ import annotations

from dataclasses import replace

from registry.records import Condition, InstanceRecord, Proof, Servable, ServableState, encode_instance

MOST_CONDITIONS = 50
LIMIT = 1_000_000
"""Bytes; etcd refuses requests of more than 1.5 MiB, and other keys have to fit in too."""
_SHORT = 80


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
    return (*conditions[:MOST_CONDITIONS], Condition("More", f"{more} conditions are not listed here"))


def _shortened(servable: Servable) -> Servable:
    return replace(servable, error=servable.error[:_SHORT], proof_detail=servable.proof_detail[:_SHORT])


def _served(servable: Servable) -> bool:
    return servable.state is ServableState.AVAILABLE and servable.proof in (Proof.PROVED, Proof.TRUSTED)
