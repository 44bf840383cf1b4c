"""What clients must never see while versions are moved. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import grpc

from tests.support.load import Outcome


@dataclass(frozen=True)
class Move:
    """One change of a model's policy from one version to another: monotonic seconds of the order and of its end."""

    model: str
    version: int
    ordered: float
    done: float


@dataclass
class Verdict:
    """What came of a run's requests."""

    requests: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong_answer: list[Outcome] = field(default_factory=list)
    """The value doesn't prove the version that the answer names."""
    outside: list[Outcome] = field(default_factory=list)
    """From a version that the policy did not name while the request was on its way."""
    back: list[Outcome] = field(default_factory=list)
    """A client got the old version again, within one move, after it had got the new one."""

    @property
    def faults(self) -> int:
        """How many requests were not as they should be."""
        return self.failed.total() + len(self.wrong_answer) + len(self.outside) + len(self.back)


def judge(outcomes: Sequence[Outcome], moves: Sequence[Move], first: int, answers: Mapping[int, float]) -> Verdict:
    """One model's requests and its moves, both in order. `first`: the version before the first move; `answers`: what
    each version says."""
    verdict = Verdict(requests=len(outcomes))
    newest: defaultdict[int, tuple[int, bool]] = defaultdict(lambda: (-1, False))
    number = -1
    for outcome in sorted(outcomes, key=lambda one: one.started):
        if outcome.code is not grpc.StatusCode.OK:
            verdict.failed[f"{outcome.code.name} {outcome.details}"] += 1
            continue
        if outcome.values != (answers.get(outcome.version),):
            verdict.wrong_answer.append(outcome)
        while number + 1 < len(moves) and moves[number + 1].ordered <= outcome.started:
            number += 1
        ended = outcome.started + outcome.seconds
        allowed = _allowed(outcome.started, ended, moves, number, first)
        if outcome.version not in allowed:
            verdict.outside.append(outcome)
        if number >= 0:
            at, seen = newest[outcome.client]
            new = outcome.version == moves[number].version
            if at == number and seen and not new and ended <= _next(moves, number):
                verdict.back.append(outcome)
            newest[outcome.client] = (number, new or (at == number and seen))
    return verdict


def _next(moves: Sequence[Move], number: int) -> float:
    return moves[number + 1].ordered if number + 1 < len(moves) else float("inf")


def _allowed(started: float, ended: float, moves: Sequence[Move], number: int, first: int) -> set[int]:
    """The versions that may answer: the last move's, the one before while that goes on, and those of moves that began
    while the request was on its way."""
    before = moves[number - 1].version if number > 0 else first
    allowed = {moves[number].version if number >= 0 else first}
    if number >= 0 and started < moves[number].done:
        allowed.add(before)
    return allowed | {move.version for move in moves[number + 1 :] if move.ordered <= ended}
