"""What operators want drained: the value of `drains/<instance>`. Pure.

Invariant: one record per instance says all that is wanted of it, so that two operators who drain different models of
it change one key, one after the other, and nobody's wish is lost (`added`, `removed`; written by compare-and-swap). It
is not leased: an instance that is drained stays so across restarts of its monitor, until somebody takes it back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from registry.records import read_document, read_field, read_flag, read_int64, read_text

UNHEARD = "DrainedUnheard"
"""The condition of an instance that counts as drained though nobody could say that nothing is in flight."""


@dataclass(frozen=True, slots=True)
class DrainTarget:
    """A model, or one version of it."""

    model: str
    version: int | None = None

    def __str__(self) -> str:
        return self.model if self.version is None else f"{self.model}@{self.version}"

    def covers(self, model: str, version: int) -> bool:
        """Whether this version of this model is meant."""
        return self.model == model and self.version in (None, version)


@dataclass(frozen=True, slots=True)
class DrainRecord:
    """`targets`: what of the instance; none: all of it. `by`: who asked, USER@HOST; `since`: when, RFC 3339. `stop`: a
    monitor that owns its server stops it once it is drained, deletes the record, and ends. `force`: also if nobody
    could say that nothing is in flight on it."""

    targets: tuple[DrainTarget, ...] = ()
    by: str = ""
    since: str = ""
    message: str = ""
    stop: bool = False
    force: bool = False

    def covers(self, model: str, version: int) -> bool:
        """Whether this version of this model is to be drained."""
        return not self.targets or any(target.covers(model, version) for target in self.targets)

    @property
    def whole(self) -> bool:
        """Whether it is the instance, and not some models of it."""
        return not self.targets


def told_drain(record: DrainRecord, instance: str) -> str:
    """The wish for people, with the mend."""
    what = "all of it" if record.whole else ", ".join(map(str, record.targets))
    asked = " ".join((f"by {record.by}" * bool(record.by), f"since {record.since}" * bool(record.since))).strip()
    why = f" ({record.message})" if record.message else ""
    return f"{what}, {asked or 'by nobody knows whom'}{why}; take it back with `modelplane undrain {instance}`"


def added(known: DrainRecord | None, wish: DrainRecord) -> DrainRecord:
    """What is wanted once `wish` is asked for too. Who began stays named unless more is wanted now."""
    if known is None:
        return replace(wish, targets=_least(set(wish.targets)))
    if known.whole or wish.whole:
        targets: tuple[DrainTarget, ...] = ()
    else:
        targets = _least({*known.targets, *wish.targets})
    if targets == known.targets and known.stop >= wish.stop and known.force >= wish.force:
        return replace(known, message=wish.message or known.message)
    stop, force = known.stop or wish.stop, known.force or wish.force
    return replace(wish, targets=targets, message=wish.message or known.message, stop=stop, force=force)


def removed(known: DrainRecord, targets: Iterable[DrainTarget]) -> DrainRecord | None:
    """What is wanted once these are taken back (none: all); None: nothing. Raises ValueError that says which of them is
    not drained, or only as part of something larger."""
    gone = tuple(targets)
    if not gone:
        return None
    if known.whole:
        raise ValueError("the whole instance is drained, so no model of it can be taken back alone; leave --model out")
    for target in gone:
        if target.version is not None and DrainTarget(target.model) in known.targets:
            raise ValueError(
                f"all versions of {target.model} are drained, so {target} can't be taken back alone; "
                f"say --model {target.model}"
            )
        if not any(_within(one, target) for one in known.targets):
            raise ValueError(f"{target} is not drained; drained are {', '.join(map(str, known.targets))}")
    rest = tuple(one for one in known.targets if not any(_within(one, target) for target in gone))
    return replace(known, targets=rest) if rest else None


def _within(one: DrainTarget, other: DrainTarget) -> bool:
    return one.model == other.model and other.version in (None, one.version)


def _least(targets: set[DrainTarget]) -> tuple[DrainTarget, ...]:
    """Without the versions of which the whole model is named."""
    kept = (one for one in targets if one.version is None or DrainTarget(one.model) not in targets)
    return tuple(sorted(kept, key=lambda one: (one.model, one.version or 0)))


def parse_target(text: str) -> DrainTarget:
    """`MODEL` or `MODEL@VERSION`. What follows the last `@` is a version if it is a number. Raises ValueError."""
    model, at, version = text.rpartition("@")
    if at and version.isascii() and version.isdigit():
        if len(version) > 19 or int(version) >= 2**63:
            raise ValueError(f"{text!r}: versions end at 9223372036854775807")
        if not model:
            raise ValueError(f"{text!r}: the model's name is empty; write MODEL or MODEL@VERSION")
        return DrainTarget(model, int(version))
    if not text:
        raise ValueError("the model's name is empty; write MODEL or MODEL@VERSION")
    return DrainTarget(text)


def encode_drain(record: DrainRecord) -> bytes:
    """Spell what is wanted drained."""
    document = {
        "by": record.by,
        "since": record.since,
        "message": record.message,
        "targets": [
            {"model": one.model} if one.version is None else {"model": one.model, "version": one.version}
            for one in record.targets
        ],
        "stop": record.stop,
    }
    if record.force:
        document["force"] = True
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def decode_drain(raw: bytes) -> DrainRecord:
    """Read it back. Raises RecordError."""
    document = read_document(raw)
    texts = {name: read_field(document, name, read_text, "") for name in ("by", "since", "message")}
    return DrainRecord(
        read_field(document, "targets", lambda rows: tuple(map(_target, rows)), ()),
        stop=read_field(document, "stop", read_flag, default=False),
        force=read_field(document, "force", read_flag, default=False),
        **texts,
    )


def _target(row: Any) -> DrainTarget:
    # proto3 JSON: an optional field that is not there; a 64-bit number may be a string.
    version = read_field(row, "version", lambda value: None if value is None else read_int64(value), None)
    return DrainTarget(read_field(row, "model", read_text), version)
