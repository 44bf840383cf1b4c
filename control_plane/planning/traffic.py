"""Which versions shall answer, and how far the move from one to the next has come. Pure.

Invariants: somebody is named as long as any version is known; `follow: latest` goes to a version once, when enough
instances are ready for it, and goes back only to the operator's order, to a canary's rollback, or where it is certain
that nobody answers for the version; weights, labels and mirrors name a version only once it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from control_plane.planning.canary import CanaryMove, step_canary
from control_plane.planning.view import View
from registry.events import Event
from registry.plane_traffic import VersionTotals
from registry.policy.model import Canary
from registry.rollouts import Phase, RolloutRecord
from registry.traffic import Mirror, TrafficRecord

_MOVING = (Phase.LOADING, Phase.SWITCHING, Phase.STEPPING, Phase.PAUSED, Phase.ROLLING_BACK)
_FIRST = (Phase.WAITING, Phase.LOADING, Phase.FAILED, Phase.PAUSED)
_BACK = (Phase.ROLLING_BACK, Phase.ROLLED_BACK)
STEP_INTERVAL = 1.0
"""Seconds between two looks at a canary."""

Totals = Callable[[str], Mapping[int, VersionTotals]]


@dataclass(frozen=True, slots=True)
class Resolved:
    """`traffic` None: there is nothing to say yet. `look_at`: when to look again though nothing changes."""

    traffic: TrafficRecord | None
    rollout: RolloutRecord | None
    events: tuple[Event, ...] = ()
    look_at: float | None = None


def resolve(view: View, totals: Totals, now: float, source: str = "") -> Resolved:
    """`totals`: statistics by version of a model, as `source` adds them up; `now`: Unix seconds."""
    policy, written = view.wish.policy, view.traffic
    if written is None and policy.follow_latest and (start := _remembered(view)) is not None:
        view = replace(view, traffic=TrafficRecord({start: 1}))
    observe = compare = 0.0
    events: tuple[Event, ...] = ()
    look_at = None
    if not policy.follow_latest:
        weights, rollout = _weighted(view, now)
    elif (start := view.present) is None:
        first = _first(view)
        weights = {first: 1} if first is not None else {}
        rollout = _begun(view, None, first, now) if first is not None else _waiting(view, now)
    elif isinstance(policy.rollout, Canary) and _canary_goes_on(view):
        move = _canary(view, totals, now, source)
        weights, rollout, events = move.weights, move.rollout, move.events
        observe, compare = move.observe, move.compare
        look_at = now + STEP_INTERVAL if rollout.phase in (Phase.STEPPING, Phase.SWITCHING) else None
    else:
        weights, rollout = _followed(view, start, now)
    if not any(weights.values()):
        return Resolved(None, rollout, events, look_at)
    record = TrafficRecord(
        dict(weights),
        _labels(view, written),
        policy.sticky_by.lower(),
        _mirrors(view),
        observe,
        compare,
        view.wish.generation,
    )
    return Resolved(record, rollout, (*events, *_told(view, record, rollout, now)), look_at)


# -- follow: latest


def _first(view: View) -> int | None:
    """Where there was no policy, or nothing at all: what answered until now goes on."""
    there = {version for version in view.candidates if view.ready(version)}
    usual = [version for version in there if 2 * view.ready(version) >= len(view.targets)]
    if there:
        return max(usual) if usual else max(there, key=lambda version: (view.ready(version), version))
    # The one that most can have: what lies on a few disks only is gone to once it lies on the others.
    pool = view.wanted if view.wish.policy.versions.specific else view.candidates - _refused(view)
    hopeful = [version for version in pool if not view.hopeless(version)]
    return max(hopeful, key=lambda version: (view.able(version), version), default=view.goal)


def _remembered(view: View) -> int | None:
    """Where the traffic is gone from the registry: the version that the rollout began from, or went to."""
    rollout = _valid(view)
    if rollout is None or not view.candidates:
        return None
    before = rollout.from_version
    stayed = rollout.phase not in (Phase.SWITCHING, Phase.UNLOADING, Phase.DONE) and before is not None
    start = before if stayed else rollout.to_version
    return start if start is not None and view.ready(start) else None


def _refused(view: View) -> frozenset[int]:
    rollout = _valid(view)
    return frozenset(rollout.refused) if rollout is not None else frozenset()


def _goal(view: View, present: int) -> int:
    """Where the traffic is to go."""
    goal = view.goal
    if goal is None:
        return present
    if goal == present and view.hopeless(present):
        return max((version for version in view.wanted if not view.hopeless(version)), default=present)
    if goal < present and not view.wish.policy.versions.specific and not view.lost(present):
        # Its files are gone, or those who have it are away for a moment: no reason to go back.
        return present
    return goal


def _followed(view: View, present: int, now: float) -> tuple[Mapping[int, int], RolloutRecord | None]:
    assert view.traffic is not None
    rollout, goal = _valid(view), _goal(view, present)
    if goal == present:
        weights = view.traffic.weights
        if _alone(weights) != present and (view.enough(present) and not view.wish.policy.paused):
            weights = {present: 1}
        return weights, _settled(view, rollout, present, now)
    if view.lost(present) and not view.enough(goal):
        other = max((v for v in view.candidates if view.ready(v)), key=lambda v: (view.ready(v), v), default=None)
        if other is not None:
            text = f"nobody answers for version {present} any more, so version {other} does"
            return {other: 1}, _phase(view, rollout, Phase.LOADING, present, goal, text, now)
    if view.wish.policy.paused:
        return view.traffic.weights, _phase(view, rollout, Phase.PAUSED, present, goal, _progress(view, goal), now)
    if view.enough(goal):
        text = f"version {goal} is ready on {view.ready(goal)} of {len(view.targets)} instances"
        return {goal: 1}, _phase(view, rollout, Phase.SWITCHING, present, goal, text, now)
    phase = Phase.LOADING if view.reachable(goal) else Phase.FAILED
    return view.traffic.weights, _phase(view, rollout, phase, present, goal, _progress(view, goal), now)


def _settled(view: View, rollout: RolloutRecord | None, present: int, now: float) -> RolloutRecord | None:
    """Nothing is to be switched: load what is missing at first, unload what is left over, done."""
    left = _left_over(view, present)
    if rollout is not None and rollout.phase in _BACK:
        over = rollout.phase is Phase.ROLLED_BACK or left
        return rollout if over else replace(rollout, phase=Phase.ROLLED_BACK, since=now)
    of_present = rollout is not None and rollout.to_version == present
    before = rollout.from_version if rollout is not None and of_present else None
    first = rollout is None or (of_present and rollout.phase in _FIRST)
    if first and view.managed and not view.enough(present):
        phase = Phase.LOADING if view.reachable(present) else Phase.FAILED
        phase = Phase.PAUSED if view.wish.policy.paused else phase
        return _phase(view, rollout, phase, before, present, _progress(view, present), now)
    if rollout is not None and of_present and rollout.phase is Phase.DONE:
        return rollout
    if left:
        if rollout is not None and of_present and rollout.phase is Phase.UNLOADING:
            return rollout
        return _phase(view, rollout, Phase.UNLOADING, before, present, f"version {present} answers; {left}", now)
    return _phase(view, rollout, Phase.DONE, before, present, f"version {present} answers", now)


def _left_over(view: View, present: int) -> str:
    """What is still to be unloaded."""
    wanted = view.wanted | view.wish.policy.named_versions | view.mirrored | {present}
    left = {version for copy in (*view.targets, *view.leavers) for version in (copy.has | copy.held) - wanted}
    names = ", ".join(str(version) for version in sorted(left))
    return f"version {names} is being unloaded" if view.managed and left else ""


# -- strategy: canary


def _canary_goes_on(view: View) -> bool:
    """Whether a canary is under way, or to begin."""
    present = _base(view)
    return present is not None and view.goal is not None and _goal(view, present) != present


def _base(view: View) -> int | None:
    """The version that a canary starts from: also once most of the traffic goes to the new one."""
    rollout = _valid(view)
    if rollout is None and view.traffic is not None:
        # Lost, perhaps in the middle of a canary: what is still shared out has not been proved.
        others = {version: parts for version, parts in view.traffic.weights.items() if parts and version != view.goal}
        return max(others, key=lambda version: (others[version], version), default=view.present)
    if rollout is None or rollout.phase not in _MOVING or view.traffic is None:
        return view.present
    return rollout.from_version if rollout.from_version in view.traffic.weights else view.present


def _canary(view: View, totals: Totals, now: float, source: str) -> CanaryMove:
    present, rollout = _base(view), _valid(view)
    assert present is not None
    goal = _goal(view, present)
    if rollout is None or rollout.to_version != goal or rollout.phase not in (*_MOVING, Phase.WAITING):
        rollout = _phase(view, rollout, Phase.LOADING, present, goal, _progress(view, goal), now)
    begun = rollout.step > 0 or rollout.phase in (Phase.STEPPING, Phase.SWITCHING, Phase.ROLLING_BACK)
    if not begun and not view.enough(goal):
        phase = Phase.LOADING if view.reachable(goal) else Phase.FAILED
        phase = Phase.PAUSED if view.wish.policy.paused else phase
        return CanaryMove(_phase(view, rollout, phase, present, goal, _progress(view, goal), now), {present: 1})
    ready = {version: view.ready(version) for version in (present, goal)}
    wanted = len(view.targets) - view.excepted(goal)
    return step_canary(view.wish.policy, rollout, ready, wanted, totals(view.name), now, source)


# -- weights, labels, mirrors


def _answers(view: View, version: int) -> bool:
    return view.enough(version) if view.managed else view.ready(version) > 0


def _weighted(view: View, now: float) -> tuple[Mapping[int, int], RolloutRecord | None]:
    wanted = {version: parts for version, parts in view.wish.policy.weights.items() if parts}
    before = view.traffic.weights if view.traffic is not None else {}
    missing = [version for version in wanted if not before.get(version) and not _answers(view, version)]
    rollout, named = _valid(view), " ".join(f"{version}={parts}" for version, parts in sorted(wanted.items()))
    if not missing and rollout is not None and rollout.phase in (Phase.WAITING, Phase.LOADING, Phase.FAILED):
        # Named before anybody answered, since there was nobody else to name: that isn't the end of it.
        missing = [version for version in wanted if not _answers(view, version)]
    if not missing:
        return wanted, _phase(view, rollout, Phase.DONE, None, None, f"weights {named}", now)
    newest = max(missing)
    text = f"weights {named} wait: {_progress(view, newest)}"
    phase = Phase.LOADING if view.reachable(newest) else Phase.FAILED
    waits = _phase(view, rollout, phase, None, newest, text, now)
    if before:
        return before, waits
    there = {version: parts for version, parts in wanted.items() if view.ready(version)}
    return there or wanted, waits


def _labels(view: View, written: TrafficRecord | None) -> Mapping[str, int]:
    before = written.labels if written is not None else {}
    labels: dict[str, int] = {}
    for label, version in view.wish.policy.labels.items():
        old = before.get(label)
        if old == version or (_answers(view, version) if old is not None else view.ready(version)):
            labels[label] = version
        elif old is not None:
            labels[label] = old
    return labels


def _mirrors(view: View) -> tuple[Mirror, ...]:
    mirror = view.wish.policy.mirror
    if mirror is None or not mirror.percent:
        return ()
    if mirror.model == view.name and mirror.version is not None and not view.ready(mirror.version):
        return ()
    return (Mirror(mirror.percent, mirror.model, mirror.version),)


# -- what is written about it


def _valid(view: View) -> RolloutRecord | None:
    """The record; of an older generation without what that refused."""
    rollout = view.rollout
    if rollout is None or rollout.generation == view.wish.generation:
        return rollout
    if rollout.phase in (Phase.ROLLED_BACK, Phase.FAILED):
        return None
    return replace(rollout, generation=view.wish.generation, refused=())


def _begun(view: View, before: int | None, after: int, now: float) -> RolloutRecord:
    return _phase(view, _valid(view), Phase.LOADING, before, after, _progress(view, after), now)


def _waiting(view: View, now: float) -> RolloutRecord:
    policy = view.wish.policy
    if not view.targets:
        text = "no managed instance that matches has the files" if view.managed else "no instance has it"
    else:
        text = f"no wanted version is under {policy.base_path}" if view.managed else "no instance has a wanted version"
    return _phase(view, _valid(view), Phase.WAITING, None, None, text, now)


def _phase(
    view: View,
    rollout: RolloutRecord | None,
    phase: Phase,
    before: int | None,
    after: int | None,
    text: str,
    now: float,
) -> RolloutRecord:
    refused = rollout.refused if rollout is not None else ()
    same = rollout is not None and (rollout.phase, rollout.to_version) == (phase, after)
    since = rollout.since if rollout is not None and same else now
    return RolloutRecord(phase, before, after, 0, 0, since, text, view.wish.generation, refused)


def _progress(view: View, version: int) -> str:
    text = f"version {version} is ready on {view.ready(version)} of {len(view.targets)} instances"
    reasons = []
    for copy in view.targets:
        if version in copy.ready:
            continue
        if version in copy.failed:
            reasons.append(f"{copy.instance}: it failed")
        elif not copy.alive:
            reasons.append(f"{copy.instance}: away")
        elif view.managed and version not in copy.on_disk | copy.held:
            reasons.append(f"{copy.instance}: not on its disk")
        elif view.managed and version not in copy.has and view.size(version) > copy.free:
            reasons.append(f"{copy.instance}: no room beside the old version")
    more = f" and {len(reasons) - 2} more" if len(reasons) > 2 else ""
    return text + (f" ({', '.join(reasons[:2])}{more})" if reasons else "")


def _alone(weights: Mapping[int, int]) -> int | None:
    """The version that has all the weight; None: several share it."""
    some = [version for version, parts in weights.items() if parts]
    return some[0] if len(some) == 1 == len(weights) else None


def _shares(weights: Mapping[int, int]) -> str:
    """`90 % to version 1, 10 % to version 2`."""
    whole = sum(weights.values())
    return ", ".join(f"{100 * parts / whole:.3g} % to version {one}" for one, parts in sorted(weights.items()) if parts)


def _told(view: View, record: TrafficRecord, rollout: RolloutRecord | None, now: float) -> tuple[Event, ...]:
    def event(kind: str, version: int | None, text: str) -> Event:
        return Event(now, kind, view.name, version=version, text=text)

    events, old, follows = list[Event](), view.rollout, view.wish.policy.follow_latest
    before = view.traffic.weights if view.traffic is not None else {}
    alone = _alone(record.weights)
    back = rollout is not None and rollout.phase in _BACK
    if before and alone is not None and alone != _alone(before) and follows and not back:
        if _base(view) != alone:
            events.append(event("VersionSwitched", alone, f"from version {_base(view)}"))
        elif any(parts for version, parts in before.items() if version != alone):
            # It was the present one all along, and shared: a canary was given up, or weights were taken away.
            events.append(event("WeightsChanged", alone, f"all again; it was {_shares(before)}"))
    elif before and not follows and dict(before) != dict(record.weights):
        named = " ".join(f"{version}={parts}" for version, parts in sorted(record.weights.items()))
        events.append(event("WeightsChanged", None, named))
    if rollout is None or (old is not None and (old.phase, old.to_version) == (rollout.phase, rollout.to_version)):
        return tuple(events)
    goal = rollout.to_version
    if rollout.phase is Phase.LOADING and goal is not None:
        since = rollout.from_version
        events.append(event("RolloutStarted", goal, f"from version {since}" if since is not None else rollout.text))
    elif rollout.phase is Phase.FAILED:
        events.append(event("RolloutFailed", goal, rollout.text))
    elif rollout.phase is Phase.DONE and old is not None and goal is not None:
        events.append(event("RolloutDone", goal, rollout.text))
    return tuple(events)
