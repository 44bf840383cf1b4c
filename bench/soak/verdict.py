"""What clients may see. Pure: outcomes and the record of faults in, violations out.

A failed request is one that should not be, unless it was
- unsafe (SessionRun), and in flight when a server was killed: it had begun before the server's sockets were gone, and
  had not ended when it was killed (or it was sent into a connection that Envoy had not yet heard was broken). A refused
  connection is no excuse, for no server got the request;
- for the model that was told to fail, with the error of the instance that was told, which names that instance's own
  file, before the instance was out of Envoy;
- for the model that was told to hang, begun before the instance was out of Envoy and ended by its release.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import grpc

from tests.support.load import Outcome

_REFUSED = "connection failure"
"""What Envoy says of a connection that it could not make."""
NOTICED = 0.25
"""Seconds that Envoy may take to hear of a broken connection, on a busy machine."""


@dataclass
class Kill:
    """A server's kill -9. Times are monotonic seconds; `gone`: its sockets were closed."""

    instance: str
    at: float
    gone: float = float("inf")


@dataclass
class Trouble:
    """A model told to fail, or to hang, on one instance. `out`: every Envoy had left it out; `released`: it was told to
    answer again. `file` is what the model's own error names."""

    instance: str
    file: str
    hangs: bool
    began: float
    out: float = float("inf")
    released: float = float("inf")


@dataclass
class Version:
    """From `since` on every Envoy sends requests that name no version to this one or a newer one."""

    number: int
    since: float


@dataclass
class Record:
    """What was done, as far as it excuses an outcome."""

    kills: list[Kill] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)


class Excuse(Enum):
    """Why a failed request is none that should not be."""

    KILLED = "unsafe, in flight on a killed server"
    FAILED = "the failing model's own error, before it was out"
    HUNG = "held by the hanging model until its release"


def excuse_unsafe(outcome: Outcome, kills: Iterable[Kill]) -> Kill | None:
    """The kill that an unsafe request fell victim to."""
    if outcome.code is not grpc.StatusCode.UNAVAILABLE or _REFUSED in outcome.details:
        return None
    ended = outcome.started + outcome.seconds
    return next((kill for kill in kills if kill.at <= ended and outcome.started <= kill.gone + NOTICED), None)


def excuse_switched(outcome: Outcome, troubles: Iterable[Trouble]) -> Excuse | None:
    """Of a request for the model that was told to fail or to hang."""
    ended = outcome.started + outcome.seconds
    for trouble in troubles:
        if outcome.started > trouble.out or ended < trouble.began:
            continue
        if not trouble.hangs and trouble.file in outcome.details:
            return Excuse.FAILED
        own = outcome.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN)
        if trouble.hangs and own and ended >= trouble.released:
            return Excuse.HUNG
    return None


def back_in_time(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Answers older than one that the same client, which asks one after the other, had before."""
    newest: dict[int, int] = {}
    wrong = []
    for outcome in outcomes:
        if outcome.code is grpc.StatusCode.OK:
            if outcome.version < newest.get(outcome.client, 0):
                wrong.append(outcome)
            newest[outcome.client] = max(outcome.version, newest.get(outcome.client, 0))
    return wrong


def stale(outcomes: Iterable[Outcome], versions: Iterable[Version]) -> list[Outcome]:
    """Answers older than what every Envoy served when the request began."""
    known = sorted(versions, key=lambda version: version.since)
    return [
        outcome
        for outcome in outcomes
        if outcome.code is grpc.StatusCode.OK
        and outcome.version < max((one.number for one in known if one.since <= outcome.started), default=0)
    ]


def wrong_value(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Answers of another model than the one that they say they are of: version N adds N to half of 2."""
    return [
        outcome
        for outcome in outcomes
        if outcome.code is grpc.StatusCode.OK and outcome.values != (1.0 + outcome.version,)
    ]


@dataclass
class Verdict:
    """`wrong` is empty if all was well."""

    requests: int
    wrong: list[tuple[str, Outcome]]
    excused: dict[Excuse, int]
    by_kill: Counter[str]
    """Of the unsafe ones: how many per killed instance."""
    said: Counter[str]
    """What they were told."""


def judge(steady: Sequence[Outcome], switched: Sequence[Outcome], unsafe: Sequence[Outcome], record: Record) -> Verdict:
    """All outcomes of a run."""
    excused, by_kill, said = dict.fromkeys(Excuse, 0), Counter[str](), Counter[str]()
    wrong = [("failed", one) for one in steady if one.code is not grpc.StatusCode.OK]
    for one in switched:
        if one.code is grpc.StatusCode.OK:
            continue
        if why := excuse_switched(one, record.troubles):
            excused[why] += 1
        else:
            wrong.append(("failed", one))
    for one in unsafe:
        if one.code is grpc.StatusCode.OK:
            continue
        if kill := excuse_unsafe(one, record.kills):
            excused[Excuse.KILLED] += 1
            by_kill[kill.instance] += 1
            said[one.details] += 1
        else:
            wrong.append(("failed", one))
    wrong += [("version went back", one) for one in back_in_time(steady)]
    wrong += [("old version", one) for one in stale(steady, record.versions)]
    wrong += [("wrong answer", one) for one in wrong_value(steady)]
    return Verdict(len(steady) + len(switched) + len(unsafe), wrong, excused, by_kill, said)
