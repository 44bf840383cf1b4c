"""When versions are asked whether they answer, and what their answers make of them. Pure: no I/O, `now` in seconds.

Invariants, for one load of one version (`Course`): it is never READY before its first good proof; one failed re-proof
never takes it out, the second in a row does, whatever failed; two good ones in a row bring it back; and while it is
AVAILABLE it is always going to be asked again, unless there is nothing that it could be asked. For an instance
(`Reproofs`): re-proofs begin at no more than `rate` a second, whatever the number of models and however they fail.

    UNPROVED  never answered in this load: no endpoint; asked again with growing pauses
       | a good proof
    READY     asked again every `interval`, later if that would cost more than 1 % of its time
       | FALL failed re-proofs in a row, the second as soon as the rate allows   ^ RISE good ones in a row
    FAILING   an endpoint only where its version is READY nowhere; asked again with growing pauses

docs/proof.md has the numbers and the reasons.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from monitor.servables import Outcome, Question
from registry.records import Proof

FALL, RISE = 2, 2
FIRST_RETRY, LAST_RETRY = 0.5, 30.0
RISE_PAUSE, LONGEST_RISE_PAUSE = 1.0, 30.0
"""Seconds between the two good re-proofs; doubled with each fall, for what answers only while it has no load."""
STEADY = 600.0
"""After so many seconds READY its earlier falls are forgotten."""
COST = 100.0
LONGEST_PAUSE = 60.0
"""A re-proof that took t seconds is followed by none of that version for COST * t, and by none of another for as long
too, but never for more than LONGEST_PAUSE and the policy's interval, respectively."""
LEAST_PATIENCE, USUAL_TIMES = 5.0, 20.0
"""A re-proof is waited for USUAL_TIMES as long as it took of late, and not for less than LEAST_PATIENCE seconds."""
MOST_OPEN = 4
"""Routine re-proofs under way at once."""
MOST_DOUBTED, SLOT = 32, 2.0
"""Probes under way at once of what answered before a connection was lost. Each counts for SLOT seconds at most, or what
hangs would hold up the rest. A thousand at once would keep a busy machine from answering in time, and so from keeping
its connection; and a version that has just been loaded would wait behind them."""
AGAIN = 1.0
"""Seconds after which one that could not be asked in doubt is asked again."""
HUNG = 3
"""So many versions silent, and none that answers: it is the server that hangs."""


class Standing(Enum):
    """What one load of one version is worth."""

    UNPROVED = "UNPROVED"
    READY = "READY"
    FAILING = "FAILING"


@dataclass(frozen=True, slots=True)
class ReproofPolicy:
    """`interval`: seconds between two re-proofs of one version; `rate`: re-proofs a second of one instance; `deadline`:
    the longest that one is waited for."""

    interval: float = 10.0
    rate: float = 2.0
    deadline: float = 30.0


@dataclass(slots=True)
class Course:
    """One load of one version. `at`: when to ask it next; None: not before something else happens."""

    standing: Standing = Standing.UNPROVED
    warm_up: int = 0
    """Good answers in a row before it is READY for the first time; 0 is as good as 1."""
    proof: Proof = Proof.PENDING
    detail: str = ""
    question: Question | None = None
    at: float | None = None
    asking: bool = False
    urgent: bool = True
    """Asked outside the instance's rate: it never answered yet, or the connection was lost meanwhile."""
    _proved: tuple[Proof, str] = (Proof.PENDING, "")
    _bad: int = 0
    _good: int = 0
    _retries: int = 0
    _falls: int = 0
    _ready_since: float = 0.0
    _usual: float = 0.0

    @property
    def routine(self) -> bool:
        """Nothing is known against it."""
        return self.standing is Standing.READY and not self._bad

    @property
    def confirming(self) -> bool:
        """The next re-proof may take it out."""
        return self.standing is Standing.READY and self._bad > 0

    def loaded(self, now: float) -> None:
        """The server calls it AVAILABLE."""
        self.at, self.urgent = now, True

    def unloaded(self, *, forget: bool) -> None:
        """The server calls it AVAILABLE no more; in this load it will not be so again."""
        self.standing, self.at = Standing.UNPROVED, None
        if forget:
            self.proof, self.detail = Proof.PENDING, ""

    def connection_lost(self, now: float) -> None:
        """The server may have been restarted: what it answered before is in doubt."""
        if self.standing is not Standing.UNPROVED:
            self.at, self.urgent = now, True

    def patience(self, policy: ReproofPolicy) -> float:
        """Seconds that the next probe is waited for."""
        if self.urgent:
            return policy.deadline
        return min(policy.deadline, max(LEAST_PATIENCE, USUAL_TIMES * self._usual))

    def ask(self) -> None:
        """A probe begins."""
        self.asking, self.at = True, None

    def ended(self, outcome: Outcome, now: float, policy: ReproofPolicy) -> None:
        """The probe ended. PENDING says nothing: it could not be asked."""
        doubted = self.at is not None  # it began before the connection was lost
        urgent, self.asking, self.urgent = self.urgent, False, False
        if outcome.proof is Proof.PENDING:
            self.at, self.urgent = now + (AGAIN if urgent else policy.interval), urgent
        elif outcome.proof is Proof.FAILED:
            self._failed(outcome, now)
        else:
            self._answered(outcome, now, policy)
        if self.standing is Standing.UNPROVED:
            self.urgent = True
        elif doubted:
            self.connection_lost(now)

    def _failed(self, outcome: Outcome, now: float) -> None:
        self._bad, self._good = self._bad + 1, 0
        if self.standing is Standing.READY and self._bad < FALL:
            self.at = now
            return
        if self.standing is Standing.READY:
            if now - self._ready_since >= STEADY:
                self._falls = 0
            self.standing, self._falls, self._retries = Standing.FAILING, self._falls + 1, 0
        self.proof, self.detail = Proof.FAILED, outcome.detail
        self.at = now + self._pause()

    def _answered(self, outcome: Outcome, now: float, policy: ReproofPolicy) -> None:
        self._bad, self._good = 0, self._good + 1
        # What comes late from something that hung says how long that lasted, not how long it takes.
        seconds = 0.0 if self.standing is Standing.FAILING else outcome.seconds
        self._usual = max(seconds, self._usual / 2)
        if self.standing is Standing.UNPROVED:
            if outcome.question is not None or self.question is None:
                self._proved, self.question = (outcome.proof, outcome.detail), outcome.question
            if self.question is not None and self._good < self.warm_up:
                self.at = now
                return
        if self.standing is Standing.FAILING and self._good < RISE:
            self.at = now + min(RISE_PAUSE * 2.0 ** (self._falls - 1), LONGEST_RISE_PAUSE)
            return
        if self.standing is not Standing.READY:
            self.standing, self._ready_since, self._retries = Standing.READY, now, 0
            self.proof, self.detail = self._proved
        pause = max(policy.interval, min(COST * seconds, LONGEST_PAUSE))
        self.at = now + pause if self.question else None

    def _pause(self) -> float:
        self._retries += 1
        return min(FIRST_RETRY * 2.0 ** (self._retries - 1), LAST_RETRY)


Key: TypeAlias = tuple[str, int, int]
"""A load of a version: model, version, incarnation."""
_NEVER = float("inf")


@dataclass(slots=True)
class Reproofs:
    """The re-proofs of one instance: which may begin, and whether it is the whole server that hangs."""

    policy: ReproofPolicy
    hung: frozenset[Key] = frozenset()
    """Of versions, those whose silence says that none would answer. Not empty: all of the instance's count as FAILING,
    and no others than these are asked."""
    _silent: set[Key] = field(default_factory=set)
    _open: set[Key] = field(default_factory=set)
    _doubted: dict[Key, float] = field(default_factory=dict)
    """When the probes began of what was in doubt."""
    _next: float = -_NEVER
    _routine_last: bool = False
    _rest_until: float = -_NEVER

    def begin(self, courses: Iterable[tuple[Key, Course]], now: float) -> list[Key]:
        """Which of these to ask now; each is told so. Of those that the rate holds back one that may have to go out is
        the first; then it is in turn that of the routine and of the failing ones that waits longest, so that neither
        many models nor many broken ones keep the others from being asked."""
        begun = []
        doubted: list[tuple[float, int, Key, Course]] = []
        waiting: list[tuple[int, float, int, Key, Course]] = []
        for key, course in courses:
            if course.at is None or course.asking or course.at > now:
                continue
            if course.urgent and course.standing is Standing.UNPROVED:
                course.ask()
                begun.append(key)
            elif course.urgent:
                doubted.append((course.at, len(doubted), key, course))
            elif self._time(key, course) <= now:
                turn = 0 if course.confirming else 1 + (course.routine is self._routine_last)
                waiting.append((turn, course.at, len(waiting), key, course))
        begun += self._begin_doubted(doubted, now)
        if waiting:
            *_, key, course = min(waiting, key=lambda entry: entry[:3])
            self._next = now + 1 / self.policy.rate
            if not course.confirming:
                self._routine_last = course.routine
            if course.routine:
                self._open.add(key)
            course.ask()
            begun.append(key)
        return begun

    def _begin_doubted(self, doubted: list[tuple[float, int, Key, Course]], now: float) -> list[Key]:
        self._doubted = {key: at for key, at in self._doubted.items() if now < at + SLOT}
        begun = []
        for *_, key, course in sorted(doubted, key=lambda entry: entry[:2])[: MOST_DOUBTED - len(self._doubted)]:
            course.ask()
            self._doubted[key] = now
            begun.append(key)
        return begun

    def next_time(self, courses: Iterable[tuple[Key, Course]]) -> float | None:
        """When `begin` next has one to ask; None: not before a probe ends or something else happens."""
        times = (self._time(key, course) for key, course in courses if not course.asking)
        earliest = min(times, default=_NEVER)
        return None if earliest == _NEVER else earliest

    def ended(self, key: Key, course: Course, outcome: Outcome, now: float) -> None:
        """A probe of this version ended. The only way for it to change its standing, and the whole server's."""
        before = course.standing
        self._doubted.pop(key, None)
        course.ended(outcome, now, self.policy)
        self._open.discard(key)
        if outcome.proof in (Proof.PROVED, Proof.TRUSTED):
            self._rest_until = now + min(COST * outcome.seconds, self.policy.interval)
            self._silent.clear()
            if course.standing is Standing.READY and before is not Standing.UNPROVED:
                self.hung = frozenset()
        elif outcome.silent and course.standing is Standing.FAILING:
            self._silent.add(key)
            if len(self._silent) >= HUNG:
                self.hung = frozenset(self._silent)
        elif not outcome.silent and outcome.proof is Proof.FAILED:
            self._silent.clear()
            self.hung = frozenset()

    def forget(self, key: Key) -> None:
        """This load is over."""
        self._open.discard(key)
        self._doubted.pop(key, None)
        self._silent.discard(key)
        if key in self.hung:
            self.hung -= {key}

    def _time(self, key: Key, course: Course) -> float:
        if course.at is None:
            return _NEVER
        if course.urgent:
            crowded = course.standing is not Standing.UNPROVED and len(self._doubted) >= MOST_DOUBTED
            return max(course.at, min(self._doubted.values()) + SLOT) if crowded else course.at
        if (self.hung and key not in self.hung) or (course.routine and len(self._open) >= MOST_OPEN):
            return _NEVER
        return max(course.at, self._next, self._rest_until if course.routine else -_NEVER)
