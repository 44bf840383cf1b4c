"""Whether a new version does as well as the old one, by what both did in the same time. Pure.

Invariant: FAILS is said only on evidence (evidence.py) that something is above its bound, and is to be believed however
often the gates are looked at; PASSES of a gate means that it was measured often enough and is within its bound.

- **Errors.** The server errors of all requests (Envoy's load reports), and all answers that are not OK of those that
  are observed (its access log), each against the policy's error rate. Errors that the old version has too, in the same
  time, are not the new one's fault: clients that ask nonsense get INVALID_ARGUMENT from both.
- **Latency.** "The 99th percentile is above a limit" is the same as "more than 1 % take longer than the limit", and is
  judged like errors. The limit is the old version's quantile times the ratio, and never below the floor; what is not
  known of the old one's for want of requests is taken in the new one's favour.
- **Difference.** The share of the compared requests whose answers differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from control_plane.planning.evidence import certain, evidence
from registry.plane_traffic import LATENCY_BOUNDS, VersionTotals
from registry.policy.model import Gates

_SHOWN = 20.0
"""How sure one must be that the old version fails too for the new one to be excused."""
_SPREAD = 1.645
"""Standard deviations: the old version's quantile is at most what is taken for it, 19 times of 20."""


class Finding(IntEnum):
    """What a gate says; the worst counts."""

    PASSES = 0
    WAITS = 1
    """Not asked often enough, or above its bound by so little that it may be chance."""
    FAILS = 2


@dataclass(frozen=True, slots=True)
class Judgement:
    """One gate's word; `text` has its figures."""

    finding: Finding
    text: str


def judge(
    gates: Gates, new: VersionTotals, old: VersionTotals | None, reference: float | None = None
) -> tuple[Judgement, ...]:
    """All gates that the policy has. `new` and `old`: what happened since the step began; `old` None: it gets no
    requests in this step. `reference`: the old version's latency when it was last known."""
    found = [judge_errors(gates, "errors", "requests", (new.requests, new.errors), _errors(old))]
    if new.observed:
        observed = None if old is None else (old.observed, old.observed_errors)
        seen = (new.observed, new.observed_errors)
        found.append(judge_errors(gates, "not OK", "observed answers", seen, observed, waits=False))
    if gates.latency_ratio is not None:
        found.append(judge_latency(gates, new, old, reference))
    if gates.difference is not None:
        found.append(judge_difference(gates, new))
    return tuple(found)


def _errors(totals: VersionTotals | None) -> tuple[int, int] | None:
    return None if totals is None else (totals.requests, totals.errors)


def judge_errors(
    gates: Gates,
    name: str,
    what: str,
    new: tuple[int, int],
    old: tuple[int, int] | None,
    *,
    waits: bool = True,
) -> Judgement:
    """`new` and `old`: how many answers, how many of them errors. `waits`: for want of answers."""
    (asked, failed), bound = new, gates.error_rate
    said = f"{name}: {failed:,} of {asked:,} {what}{f', {spell(failed / asked)}' if failed else ''}"
    if asked < gates.min_requests:
        return Judgement(Finding.WAITS if waits else Finding.PASSES, f"{said}; judged from {gates.min_requests:,}")
    if failed <= asked * bound:
        return Judgement(Finding.PASSES, said)
    said += f", where at most {spell(bound)} may be"
    if old is not None and old[0] >= gates.min_requests:
        said += f"; the old version: {old[1]:,} of {old[0]:,}"
        if _excused(new, old, bound):
            return Judgement(Finding.PASSES, f"{said}, so it is not the new one's fault")
    if certain(failed, asked, bound):
        return Judgement(Finding.FAILS, said)
    return Judgement(Finding.WAITS, f"{said}; it may be chance")


def _excused(new: tuple[int, int], old: tuple[int, int], bound: float) -> bool:
    """Whether the old version is above the bound too, and the new one not worse than the old. If both fail alike, each
    failure is the new one's with the share that it has of the answers."""
    if evidence(old[1], old[0], bound) < _SHOWN:
        return False
    return not certain(new[1], new[1] + old[1], new[0] / (new[0] + old[0]))


def judge_latency(gates: Gates, new: VersionTotals, old: VersionTotals | None, reference: float | None) -> Judgement:
    """By the buckets of the observed answers."""
    limit = latency_limit(gates, old, reference)
    name = f"p{gates.latency_quantile * 100:g}"
    asked = sum(new.latency)
    took = quantile(new.latency, gates.latency_quantile)
    said = f"{name}: {'not known' if took is None else seconds(took)} of {asked:,} observed answers"
    if limit is None:
        known = sum(old.latency) if old else 0
        if old is None:
            return Judgement(Finding.PASSES, f"{said}; the old version's is not known")
        return Judgement(
            Finding.WAITS, f"{said}; the old version's is known from {gates.min_requests:,} of its own, not {known:,}"
        )
    said += f", where at most {seconds(limit)} may be"
    if asked < gates.min_requests:
        return Judgement(Finding.WAITS, f"{said}; judged from {gates.min_requests:,}")
    slower, bound = slower_than(new.latency, limit), 1 - gates.latency_quantile
    if slower <= asked * bound:
        return Judgement(Finding.PASSES, said)
    said += f": {slower:,} took longer"
    if certain(slower, asked, bound):
        return Judgement(Finding.FAILS, said)
    return Judgement(Finding.WAITS, f"{said}; it may be chance")


def latency_limit(gates: Gates, old: VersionTotals | None, reference: float | None) -> float | None:
    """Seconds that the new version's quantile may be; None while the old one's is not known."""
    known = old_latency(gates, old)
    known = reference if known is None else known
    if known is None or gates.latency_ratio is None:
        return None
    return max(gates.latency_at_least, gates.latency_ratio * known)


def old_latency(gates: Gates, old: VersionTotals | None) -> float | None:
    """What the old version's quantile is at most, in seconds; None before it has answered often enough."""
    asked = sum(old.latency) if old else 0
    if old is None or asked < gates.min_requests:
        return None
    share = gates.latency_quantile
    return quantile(old.latency, min(1.0, share + _SPREAD * math.sqrt(share * (1 - share) / asked)))


def judge_difference(gates: Gates, new: VersionTotals) -> Judgement:
    """By the comparer's counts."""
    if gates.difference is None:
        return Judgement(Finding.PASSES, "")
    asked, differed, bound = new.compared, new.differed, gates.difference.at_most
    said = f"different: {differed:,} of {asked:,} compared answers"
    if asked < gates.min_requests:
        return Judgement(Finding.WAITS, f"{said}; judged from {gates.min_requests:,}")
    if differed <= asked * bound:
        return Judgement(Finding.PASSES, said)
    said += f", {spell(differed / asked)}, where at most {spell(bound)} may be"
    if certain(differed, asked, bound):
        return Judgement(Finding.FAILS, f"{said}{f'; such as {new.difference}' if new.difference else ''}")
    return Judgement(Finding.WAITS, f"{said}; it may be chance")


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The bound of the bucket that the quantile is in, in seconds, infinite for the last; None of nothing."""
    rank, seen = math.ceil(share * sum(counts) - 1e-9), 0
    for at, count in enumerate(counts):
        seen += count
        if count and seen >= rank:
            return _upper(at)
    return None


def slower_than(counts: Sequence[int], limit: float) -> int:
    """How many took longer for certain: those in the buckets that begin at the limit or above."""
    return sum(count for at, count in enumerate(counts) if at and _upper(at - 1) >= limit)


def _upper(bucket: int) -> float:
    return LATENCY_BOUNDS[bucket] if bucket < len(LATENCY_BOUNDS) else math.inf


def spell(share: float) -> str:
    """A share as percents."""
    return f"{share * 100:.3g} %"


def seconds(value: float) -> str:
    """A time for people."""
    if value == math.inf:
        return f"more than {LATENCY_BOUNDS[-1]:g} s"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
