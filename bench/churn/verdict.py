"""What clients may see while models come, move and go. Pure: outcomes in, violations out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc

OK, NOT_FOUND = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: on which connection, for which model, when it started and ended (monotonic seconds), what came of
    it. A connection stays with one worker of one Envoy."""

    connection: int
    model: str
    started: float
    ended: float
    code: grpc.StatusCode
    details: str = ""
    answer: bytes = b""


def codes(outcomes: Iterable[Outcome]) -> Counter[str]:
    """How often each code was seen."""
    return Counter(outcome.code.name for outcome in outcomes)


def violations(
    outcomes: Iterable[Outcome], *, served: Mapping[str, float], removed: Mapping[str, float] | None = None
) -> list[Outcome]:
    """Every outcome that should not be.

    `served`: the models that were there for every Envoy at a time, and that time. `removed`: when the removal of a
    model began. A model may be NOT_FOUND before it is there and from its removal on: once a connection has seen it, or
    all Envoys have it, never. Nothing else than OK and NOT_FOUND may ever be.
    """
    gone = removed or {}
    seen: dict[tuple[int, str], float] = {}
    wrong = []
    for outcome in sorted(outcomes, key=lambda outcome: outcome.ended):
        key = outcome.connection, outcome.model
        if outcome.code is OK:
            seen.setdefault(key, outcome.ended)
        elif outcome.code is not NOT_FOUND:
            wrong.append(outcome)
        elif outcome.ended < gone.get(outcome.model, float("inf")):
            since = min(seen.get(key, float("inf")), served.get(outcome.model, float("inf")))
            if outcome.started > since:
                wrong.append(outcome)
    return wrong
