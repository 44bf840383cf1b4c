"""The canary: a new version is given more and more of the traffic, and taken back as soon as it does worse. Pure.

Invariants: somebody answers (the weights are never all 0), and it is no version without a READY endpoint while another
has one that was not refused; steps only rise; a version that was refused never gets weight again; all that is known is
in the record, so that another leader goes on where this one ended.

    LOADING --enough are ready--> STEPPING 1, 2, … --all passed--> UNLOADING --by the planner--> DONE
                                   |  ^     |
                     the operator  v  |     +--a gate FAILS--> ROLLING_BACK --by the planner--> ROLLED_BACK
                                  PAUSED

A step is passed when it took its time, the new version has answered its requests, every gate was asked often enough
and passes, and enough instances are ready for the next step's share. Without traffic none of that comes, so it waits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from control_plane.planning import seen
from control_plane.planning.gates import Finding, Judgement, judge, old_latency
from registry.events import Event
from registry.plane_traffic import VersionTotals
from registry.policy.model import Canary, Policy, Step
from registry.rollouts import Phase, RolloutRecord

NOTED_EVERY = 5.0
"""Seconds between two writes of a record in which nothing but figures changed; what a new leader may not know."""
IDLE = 30.0
"""Seconds without a request to the new version after which there is said to be no traffic."""
OBSERVED_PER_SECOND = 200.0
"""Requests whose outcomes the Envoys shall tell, about; from all of them if there are fewer."""
_BACK = (Phase.ROLLING_BACK, Phase.ROLLED_BACK)
_OVER = (Phase.UNLOADING, Phase.DONE)


@dataclass(frozen=True, slots=True)
class CanaryMove:
    """What follows: the record to keep, the traffic's weights, what to observe and to compare (shares), and what to
    tell; the caller says of the events who decided."""

    rollout: RolloutRecord
    weights: Mapping[int, int]
    observe: float = 0.0
    compare: float = 0.0
    events: tuple[Event, ...] = ()


def step_canary(
    policy: Policy,
    rollout: RolloutRecord,
    ready: Mapping[int, int],
    wanted: int,
    totals: Mapping[int, VersionTotals],
    now: float,
    source: str = "",
) -> CanaryMove:
    """One look. To be called once the new version begins to be ready, at least every few seconds.

    `ready`: READY instances by version; `wanted`: how many shall have the new one; `totals`: cumulative, over all
    control planes; `source`: names who adds them up, so that another leader's are not compared with them; `now`: Unix
    seconds. The caller clears `refused` when the policy's generation changes, and takes over from ROLLING_BACK and
    UNLOADING. Raises ValueError for a policy without a canary, and a record without a new version.
    """
    if not isinstance(policy.rollout, Canary) or rollout.to_version is None:
        raise ValueError(f"model {policy.name}: there is no canary to step")
    return _Look(policy, policy.rollout, rollout, ready, wanted, totals, now, source).move(rollout.to_version)


def parts(old: int | None, new: int, percent: float) -> dict[int, int]:
    """Weights that give `percent` to the new version; in hundredths, unless that is not fine enough. From its first
    step on a canary names both versions, be it with 0, for neither has won."""
    if old is None:
        return {new: 1}
    whole = 100 if percent == int(percent) else 10_000
    share = min(whole, max(1, round(percent * whole / 100))) if percent > 0 else 0
    return {old: whole - share, new: share} if share else {old: whole}


@dataclass(frozen=True)
class _Look:
    policy: Policy
    canary: Canary
    rollout: RolloutRecord
    ready: Mapping[int, int]
    wanted: int
    totals: Mapping[int, VersionTotals]
    now: float
    source: str

    def move(self, new: int) -> CanaryMove:
        record, steps = self.rollout, self.canary.steps
        if record.phase in _BACK or new in record.refused:
            return self._refused(new)
        if record.phase in _OVER:
            return CanaryMove(record, {new: 100} if self._ready(new) else self._spread(100.0))
        # The policy may have got fewer steps meanwhile.
        record = replace(record, steps=len(steps), step=min(record.step, len(steps)))
        began = record.step > 0 and record.phase in (Phase.STEPPING, Phase.PAUSED)
        if self.policy.paused:
            return self._paused(record if began else replace(record, step=0))
        if not began:
            return self._begin(record)
        if record.phase is Phase.PAUSED:
            return self._resumed(record)
        return self._step(record, new)

    # what the traffic is

    def _spread(self, percent: float) -> dict[int, int]:
        """Who has nobody ready gives its share to the other, and stays among the weights: it is part of the canary."""
        old, new = self.rollout.from_version, self.rollout.to_version
        assert new is not None
        if old is not None and not self._ready(new):
            return {old: 100, new: 0} if percent else {old: 100}
        if old is not None and not self._ready(old):
            return {old: 0, new: 100}
        return parts(old, new, percent)

    def _ready(self, version: int | None) -> int:
        return 0 if version is None else self.ready.get(version, 0)

    def _needed(self, percent: float) -> int:
        """Instances of the new version that a share of the traffic takes."""
        return max(1, math.ceil(self.wanted * min(100.0, percent) / 100 - 1e-9))

    def _moved(self, record: RolloutRecord, *events: Event) -> CanaryMove:
        percent = self.canary.steps[record.step - 1].percent if record.step else 0.0
        if not record.step or record.phase not in (Phase.STEPPING, Phase.PAUSED):
            return CanaryMove(record, self._spread(percent), events=events)
        difference = self.canary.gates.difference
        observe = record.observed.get("observe", 1.0)
        return CanaryMove(record, self._spread(percent), observe, difference.share if difference else 0.0, events)

    def _event(self, kind: str, text: str) -> Event:
        return Event(self.now, kind, self.policy.name, version=self.rollout.to_version, text=text)

    # the phases

    def _refused(self, new: int) -> CanaryMove:
        record, old = self.rollout, self.rollout.from_version
        weights = {new: 1} if old is None else {old: 1}
        if record.phase in _BACK or old is None:
            return CanaryMove(record, weights)
        text = f"version {new} was taken back before; it is tried again when the policy changes"
        return CanaryMove(replace(record, phase=Phase.ROLLED_BACK, since=self.now, text=text), weights)

    def _paused(self, record: RolloutRecord) -> CanaryMove:
        where = self._where(record.step) if record.step else "the canary has not begun"
        text = f"paused by the operator; {where}"
        if record.phase is Phase.PAUSED:
            return self._moved(replace(record, text=text))
        record = replace(record, phase=Phase.PAUSED, since=self.now, text=text)
        return self._moved(record, self._event("RolloutPaused", text))

    def _resumed(self, record: RolloutRecord) -> CanaryMove:
        """The step begins anew: what happened meanwhile was not looked at."""
        text = f"{self._where(record.step)}, which begins anew after the pause"
        return self._moved(self._at(record, record.step, text), self._event("RolloutResumed", text))

    def _begin(self, record: RolloutRecord) -> CanaryMove:
        new, old = record.to_version, record.from_version
        if old is None and self._ready(new):
            return self._all(record, f"there is no other version, so version {new} gets all requests")
        needed = self._needed(self.canary.steps[0].percent)
        if self._ready(new) < needed or not self._ready(old):
            text = f"{self._ready(new)} of the {needed} instances that step 1 takes are ready for version {new}"
            if self._ready(new) >= needed:
                # Not a canary's end: the old version's instances may be back in a moment.
                text = f"no instance is ready for version {old}, so version {new} gets all requests meanwhile"
            phase = Phase.LOADING if record.phase is Phase.PAUSED else record.phase
            return self._moved(replace(record, phase=phase, step=0, text=text))
        text = self._where(1)
        return self._moved(self._at(record, 1, text), self._event("StepAdvanced", text))

    def _at(self, record: RolloutRecord, step: int, text: str) -> RolloutRecord:
        """At the beginning of a step."""
        record = replace(record, phase=Phase.STEPPING, step=step, since=self.now, text=text)
        kept = {name: record.observed[name] for name in ("observe", "oldLatency") if name in record.observed}
        return replace(seen.begin(record, self.totals, self.source), observed=kept)

    def _all(self, record: RolloutRecord, text: str) -> CanaryMove:
        record = replace(record, phase=Phase.UNLOADING, since=self.now, text=text)
        assert record.to_version is not None
        return CanaryMove(record, {record.to_version: 100}, events=(self._event("StepAdvanced", text),))

    def _step(self, record: RolloutRecord, new: int) -> CanaryMove:
        step, gates = self.canary.steps[record.step - 1], self.canary.gates
        record, found = seen.since(record, self.totals, self.source)
        mine = found.get(new, VersionTotals())
        old = found.get(record.from_version) if record.from_version is not None and step.percent < 100 else None
        judgements = judge(gates, mine, old, record.observed.get("oldLatency"))
        if failures := [one for one in judgements if one.finding is Finding.FAILS]:
            return self._back(record, new, found, judgements, "; ".join(one.text for one in failures))
        left = self._left(record, step, mine)
        if unsure := [one.text.partition(":")[0] for one in judgements if one.finding is Finding.WAITS]:
            left.append(f"gates that are not sure yet ({', '.join(unsure)})")
        if not left:
            return self._advance(record, found, judgements)
        record = self._look(record, found, judgements, f"{self._where(record.step)}; waits: {'; '.join(left)}")
        return self._moved(record)

    def _left(self, record: RolloutRecord, step: Step, mine: VersionTotals) -> list[str]:
        """What the step waits for, but for the gates."""
        left = []
        new, old, last = record.to_version, record.from_version, record.step == len(self.canary.steps)
        needed = self.wanted if last else self._needed(self.canary.steps[record.step].percent)
        if not self._ready(new):
            left.append(f"no instance is ready for version {new}")
        elif self._ready(new) < needed:
            left.append(f"{self._ready(new)} of {needed} instances are ready for version {new}")
        if not self._ready(old) and not last:
            left.append(f"no instance is ready for version {old}")
        if (idle := self._idle_since(record, mine)) is not None:
            left.append(f"no traffic, version {new} has had no request since {_clock(idle)}")
        if step.requests is not None and mine.requests < step.requests:
            left.append(f"{mine.requests:,} of {step.requests:,} requests")
        if step.duration is not None and self.now - record.since < step.duration:
            left.append(f"until {_clock(record.since + step.duration)}")
        return left

    def _idle_since(self, record: RolloutRecord, mine: VersionTotals) -> float | None:
        before = seen.seen(record).get(record.to_version or 0, VersionTotals())
        last = float(record.observed.get("lastRequest", record.since))
        return last if mine.requests <= before.requests and self.now - last >= IDLE else None

    def _look(
        self,
        record: RolloutRecord,
        found: Mapping[int, VersionTotals],
        judgements: tuple[Judgement, ...],
        text: str,
        *,
        decided: bool = False,
    ) -> RolloutRecord:
        """With the figures in it, if it is time to write them down."""
        due = self.now - float(record.observed.get("at", record.since)) >= NOTED_EVERY
        fresh = found != seen.seen(record)
        if not decided and not (due and (fresh or text != record.text)):
            return record
        observed: dict[str, Any] = {**seen.noted(record, found), "at": self.now}
        observed["gates"] = [one.text for one in judgements]
        new = record.to_version or 0
        if found.get(new, VersionTotals()).requests > seen.seen(record).get(new, VersionTotals()).requests:
            observed["lastRequest"] = self.now
        known = old_latency(self.canary.gates, found.get(record.from_version or 0))
        if known is not None:
            observed["oldLatency"] = known if math.isfinite(known) else None
        observed["observe"] = self._observe(record, found)
        return replace(record, observed=observed, text=text)

    def _observe(self, record: RolloutRecord, found: Mapping[int, VersionTotals]) -> float:
        """A share that gives about as many outcomes as can be told. Only ever less of it, and then less by half, so
        that the routers are seldom written anew for it."""
        share = float(record.observed.get("observe", 1.0))
        rate = sum(one.requests for one in found.values()) / max(10.0, self.now - record.since)
        ideal = max(0.01, OBSERVED_PER_SECOND / rate) if rate > 0 else 1.0
        return float(f"{ideal:.0e}") if ideal < share / 2 else share

    def _advance(
        self, record: RolloutRecord, found: Mapping[int, VersionTotals], judgements: tuple[Judgement, ...]
    ) -> CanaryMove:
        passed = "; ".join(one.text for one in judgements)
        record = self._look(record, found, judgements, record.text, decided=True)
        if record.step == len(self.canary.steps):
            return self._all(record, f"version {record.to_version} passed and gets all requests: {passed}")
        text = self._where(record.step + 1)
        return self._moved(
            self._at(record, record.step + 1, text), self._event("StepAdvanced", f"{text}, after {passed}")
        )

    def _back(
        self,
        record: RolloutRecord,
        new: int,
        found: Mapping[int, VersionTotals],
        judgements: tuple[Judgement, ...],
        why: str,
    ) -> CanaryMove:
        old = record.from_version
        if not self._ready(old):
            text = f"version {new} fails, but no instance is ready for version {old}, so it stays: {why}"
            return self._moved(self._look(record, found, judgements, text))
        text = f"version {new} was taken back at step {record.step} of {record.steps}: {why}"
        record = self._look(record, found, judgements, text, decided=True)
        refused = tuple(sorted({*record.refused, new}))
        record = replace(record, phase=Phase.ROLLING_BACK, since=self.now, refused=refused)
        assert old is not None
        return CanaryMove(record, {old: 1}, events=(self._event("RolledBack", text),))

    def _where(self, step: int) -> str:
        percent = self.canary.steps[step - 1].percent
        return f"step {step} of {len(self.canary.steps)}: {percent:g} % to version {self.rollout.to_version}"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S UTC")
