"""The planner: what is to be written, of a state and a time. Pure.

Invariants: planning what is planned and has come true yields nothing; a model costs what it has, not what there is;
what is assigned to an instance takes no more than its memory; a model whose policy can't be read stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import inf
from types import MappingProxyType

from control_plane.planning.placement import Placement, place
from control_plane.planning.rolling import choose_versions, next_versions
from control_plane.planning.state import FleetState, Instance, Wish
from control_plane.planning.traffic import Resolved, resolve
from control_plane.planning.view import Copy, View
from registry.assignments import AssignedModel, Assignment, spelled
from registry.drains import DrainTarget
from registry.events import Event
from registry.keys import AssignmentKey, RolloutKey, TrafficKey
from registry.policy.model import Policy
from registry.records import ReadyState
from registry.rollouts import Phase, RolloutRecord
from registry.traffic import TrafficRecord

GRACE = 30.0
"""Seconds for which an instance that is lost or drained keeps its place."""
_LOOK_AGAIN, _LOOK_AGAIN_EACH = 5.0, 0.01
MOST_BALANCING = 8
"""Models of which a copy may be on its way to another zone at a time."""
_NOBODY = Instance(managed=False)
_ANSWERED = (ReadyState.READY, ReadyState.FAILING)


@dataclass(frozen=True, slots=True)
class Decisions:
    """What differs from what is written; None: to be deleted. `look_at`: Unix seconds, when to plan the models in
    `look_again` again though nothing has changed."""

    assignments: Mapping[str, Assignment | None] = field(default_factory=dict)
    traffic: Mapping[str, TrafficRecord | None] = field(default_factory=dict)
    rollouts: Mapping[str, RolloutRecord | None] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    look_at: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.assignments or self.traffic or self.rollouts or self.events)


@dataclass(frozen=True, slots=True)
class Settings:
    """`grace`: seconds until a lost instance's models are placed again."""

    grace: float = GRACE


DEFAULTS = Settings()


def plan(
    state: FleetState,
    now: float,
    models: Iterable[str] | None = None,
    *,
    suspects: frozenset[str] = frozenset(),
    settings: Settings = DEFAULTS,
    source: str = "",
) -> Decisions:
    """Plan these models (None: all). `now`: Unix seconds. `suspects`: instances whose leases are lost and that are
    believed to live (control_plane/suspects.py). `source`: names who adds
    up the statistics. `state` is only read, but for
    `waiting` and `news`."""
    planner = Planner(state, now, suspects=suspects, settings=settings, source=source)
    for name in sorted(state.known_models() if models is None else models):
        planner.model(name)
    return planner.decisions()


class Planner:
    """One round of planning: later models see what is decided of the earlier ones."""

    def __init__(
        self,
        state: FleetState,
        now: float,
        *,
        suspects: frozenset[str] = frozenset(),
        settings: Settings = DEFAULTS,
        source: str = "",
    ) -> None:
        self._state, self._now = state, now
        self._suspects, self._settings, self._source = suspects, settings, source
        self._broken: frozenset[str] = frozenset()
        """Of the model that is planned, the instances that its copies leave because they can't load it."""
        self._tried: Mapping[str, frozenset[int]] = {}
        """Of the model that is planned, by instance: what failed there before, so that its copy went elsewhere."""
        self._states: dict[str, dict[int, ReadyState]] = {}
        """Of the model that is planned, by instance."""
        self._assigned: dict[str, dict[str, AssignedModel]] = {}
        self._freed: dict[str, float] = {}
        """What was decided of each instance's memory: bytes that are taken besides."""
        self._spelled: dict[str, int] = {}
        """Bytes by which each instance's assignment gets longer."""
        self._traffic: dict[str, TrafficRecord | None] = {}
        self._rollouts: dict[str, RolloutRecord | None] = {}
        self._events: list[Event] = []
        self._look_at: dict[str, float] = {}

    def decisions(self) -> Decisions:
        """What was decided so far."""
        state = self._state
        assignments: dict[str, Assignment | None] = {}
        for name, models in sorted(self._assigned.items()):
            before = state.assignments.get(name, Assignment())
            if not models and name not in state.instances:
                assignments[name] = None
            elif models != before.models:
                assignments[name] = Assignment(MappingProxyType(models), before.generation + 1)
        for key in state.damaged:
            if isinstance(key, AssignmentKey) and (known := state.assignments.get(key.instance)) is not None:
                assignments.setdefault(key.instance, replace(known, generation=known.generation + 1))
        events = (*state.news, *self._events)
        state.news.clear()
        return Decisions(assignments, self._traffic, self._rollouts, events, self._look_at)

    def model(self, name: str) -> None:
        """Plan one model."""
        state = self._state
        if name in state.unreadable:
            return
        wish = state.wishes.get(name)
        if wish is None:
            self._remove(name)
            return
        view = self._view(name, wish)
        resolved = resolve(view, self._state.statistics.of, self._now, self._source)
        self._write(name, view, resolved)
        if view.managed:
            self._assign(view, resolved)
        self._wait(view, resolved)

    # -- what there is

    def _view(self, name: str, wish: Wish) -> View:
        state, policy = self._state, wish.policy
        self._states = {}
        for (version, one), ready in state.ready.get(name, {}).items():
            self._states.setdefault(one, {})[version] = ready
        rollout = state.rollouts.get(name)
        present = rollout is not None and rollout.generation == wish.generation
        refused = rollout.refused if rollout is not None and present else ()
        tried = rollout.tried if rollout is not None and present else {}
        self._tried = {one: frozenset(versions) for one, versions in tried.items()}
        self._broken, stuck = frozenset(), 0
        untried = replace(rollout, tried={}) if rollout is not None else None
        mirrored = self._mirrored(name)
        if not policy.base_path:
            copies = tuple(self._copy(one, name, policy) for one in sorted(self._states))
            targets, leavers, short = copies, tuple[Copy, ...](), 0
        else:
            copies = tuple(self._copy(one, name, policy) for one in sorted(state.holders.get(name, ())))
            others = self._others(name, policy)
            must = self._must(name, policy, copies, others, refused)
            needed = must | mirrored | policy.named_versions | self._instead(policy, copies, refused)
            # Nothing goes elsewhere before it is written where it was: nobody would know, and it would come back.
            may_move = present and not policy.paused
            placement = place(
                copies,
                others,
                policy.replicas,
                lambda copy: self._fits(copy, name, must),
                lambda copy: may_move and _is_broken(copy, needed),
                balance=may_move and self._may_balance(name, rollout),
            )
            stuck = placement.stuck
            self._note_zones(name, policy, placement)
            self._note_broken(placement.broken, needed)
            targets, leavers, short = placement.targets, placement.leavers, placement.short
        there = frozenset(v for copy in targets for v in copy.on_disk | copy.ready)
        view = View(
            name, wish, targets, leavers, there, mirrored=mirrored, traffic=state.traffic.get(name),
            rollout=untried, short=short, size=lambda version: state.size(name, version),
        )  # fmt: skip
        wanted = choose_versions(policy.versions, there, view.hopeless, refused)
        goal = max(wanted, default=None)
        return View(
            name, wish, targets, leavers, there, wanted, goal, mirrored, view.traffic, view.rollout, short, view.size,
            stuck,
        )  # fmt: skip

    def _must(
        self,
        name: str,
        policy: Policy,
        copies: tuple[Copy, ...],
        others: Callable[[], Iterable[Copy]],
        refused: Iterable[int],
    ) -> frozenset[int]:
        """The versions of which a new copy needs one at least."""
        there = Counter(version for copy in copies for version in copy.on_disk | copy.ready)
        if not there:
            there = Counter(version for copy in others() for version in copy.on_disk if copy.usable)
        wanted = choose_versions(policy.versions, there, lambda version: False, refused)
        traffic = self._state.traffic.get(name)
        if traffic is not None:
            return wanted | {version for version, parts in traffic.weights.items() if parts}
        if policy.versions.specific or not there:
            return wanted
        return wanted | {max(there, key=lambda version: (there[version], version))}

    def _may_balance(self, name: str, rollout: RolloutRecord | None) -> bool:
        state = self._state
        if rollout is None or rollout.phase is not Phase.DONE:
            return False
        if name not in state.balancing and len(state.balancing) >= MOST_BALANCING and name in state.crowded:
            self._look_at[name] = self._now + max(_LOOK_AGAIN, len(state.crowded) * _LOOK_AGAIN_EACH)
            return False
        return True

    def _note_zones(self, name: str, policy: Policy, placement: Placement) -> None:
        if placement.balancing:
            self._state.balancing.add(name)
        elif not placement.leavers:
            self._state.balancing.discard(name)
        zones = Counter(copy.zone for copy in placement.targets if copy.zone)
        crowded = policy.replicas is not None and max(zones.values(), default=0) > 1
        (self._state.crowded.add if crowded else self._state.crowded.discard)(name)

    def _note_broken(self, copies: Iterable[Copy], needed: frozenset[int]) -> None:
        self._broken = frozenset(copy.instance for copy in copies)
        if not self._broken:
            return
        # What is older than all that is needed is not asked for again.
        tried = {one: frozenset(v for v in some if v >= min(needed)) for one, some in self._tried.items()}
        tried |= {one.instance: (one.failed & needed) | tried.get(one.instance, frozenset()) for one in copies}
        self._tried = {one: some for one, some in tried.items() if some}

    def _instead(self, policy: Policy, copies: tuple[Copy, ...], refused: Iterable[int]) -> frozenset[int]:
        """The versions that are wanted where the copies are, older ones in place of those that all failed to load."""

        def hopeless(version: int) -> bool:
            there = [copy for copy in copies if copy.usable and version in copy.on_disk]
            return bool(there) and all(version in copy.given_up and version not in copy.answered for copy in there)

        there = {version for copy in copies for version in copy.on_disk | copy.ready}
        return choose_versions(policy.versions, there, hopeless, refused)

    def _mirrored(self, name: str) -> frozenset[int]:
        mirrors = (self._state.wishes[other].policy.mirror for other in self._state.mirrored_by.get(name, ()))
        return frozenset(one.version for one in mirrors if one is not None and one.version is not None)

    def _others(self, name: str, policy: Policy) -> Callable[[], Iterable[Copy]]:
        holders = self._state.holders.get(name, set())

        @cache
        def others() -> tuple[Copy, ...]:
            return tuple(
                self._copy(one, name, policy)
                for one, instance in sorted(self._state.instances.items())
                if one not in holders and instance.managed and _matches(policy, instance)
            )

        return others

    def _copy(self, one: str, name: str, policy: Policy) -> Copy:
        state = self._state
        instance, drain = state.instances.get(one), state.drains.get(one)
        drained = drain is not None and (drain.whole or DrainTarget(name) in drain.targets)
        fit = instance is not None and (not policy.base_path or (instance.managed and _matches(policy, instance)))
        away = state.away_since.get(one)
        lost = away is not None and one not in self._suspects
        gone = (instance is not None and not fit) or (lost and self._now >= away + self._settings.grace)  # type: ignore[operator]
        here = instance or _NOBODY
        found = state.found(one, name, policy.base_path)
        states = self._states.get(one, {})
        assigned = self._models(one).get(name)
        return Copy(
            one,
            zone=here.zone,
            alive=(instance is not None or one in self._suspects) and not drained,
            usable=fit and not drained,
            told=instance is not None and (found is not None or not policy.base_path),
            gone=gone,
            assigned=frozenset(assigned.versions) if assigned is not None else None,
            on_disk=frozenset(found.versions) if found is not None else frozenset(),
            ready=frozenset(v for v, s in states.items() if s is ReadyState.READY),
            answered=frozenset(v for v, s in states.items() if s in _ANSWERED),
            failed=frozenset(here.failed.get(name, ())),
            held=here.held.get(name, frozenset()),
            free=self._free(one, instance) if assigned is not None or not self._is_full(one) else -1.0,
            load=len(self._models(one)),
            given_up=here.given_up.get(name, frozenset()),
        )

    def _models(self, one: str) -> Mapping[str, AssignedModel]:
        changed = self._assigned.get(one)
        return changed if changed is not None else self._state.assignments.get(one, Assignment()).models

    def _free(self, one: str, instance: Instance | None) -> float:
        if instance is None or not instance.memory:
            return inf
        return instance.memory - self._state.used(one) - self._freed.get(one, 0.0)

    def _is_full(self, one: str) -> bool:
        return self._state.spelled.get(one, 0) + self._spelled.get(one, 0) >= self._state.full_at

    def _fits(self, copy: Copy, name: str, must: frozenset[int]) -> bool:
        there = (copy.on_disk & must) - self._tried.get(copy.instance, frozenset())
        return bool(there) and min(self._state.size(name, v) for v in there) <= copy.free

    # -- what to write

    def _write(self, name: str, view: View, resolved: Resolved) -> None:
        # What nobody could answer for now stays as it was: it may be known again in a moment.
        damaged = self._state.damaged
        if resolved.traffic is not None and (resolved.traffic != view.traffic or TrafficKey(name) in damaged):
            self._traffic[name] = resolved.traffic
        rollout = resolved.rollout or self._state.rollouts.get(name)
        if rollout is not None and self._tried and rollout.generation == view.wish.generation:
            rollout = replace(rollout, tried={one: tuple(sorted(some)) for one, some in self._tried.items()})
        if rollout is not None and (rollout != self._state.rollouts.get(name) or RolloutKey(name) in damaged):
            self._rollouts[name] = rollout
        self._events += resolved.events

    def _assign(self, view: View, resolved: Resolved) -> None:
        policy, name = view.wish.policy, view.name
        records = [record for record in (view.traffic, resolved.traffic) if record is not None]
        keep = frozenset().union(policy.named_versions, view.mirrored, *(_named(record, name) for record in records))
        weighted = frozenset(v for record in records for v, parts in record.weights.items() if parts)
        # An Envoy that has not heard of the new traffic goes on with the old: until then nothing of it may drain.
        moved = self._state.moved(name)
        (self._state.unmoved.discard if moved else self._state.unmoved.add)(name)
        if not moved:
            keep |= frozenset(version for copy in view.targets for version in copy.has)
        moves = {} if policy.paused else next_versions(view, keep, weighted)
        labels = resolved.traffic.labels if resolved.traffic is not None else {}
        for copy in (*view.targets, *view.leavers):
            versions = moves.get(copy.instance, copy.assigned)
            if versions is None:
                if copy.instance in moves:
                    self._set(copy.instance, name, None)
                continue
            here = {label: version for label, version in labels.items() if version in versions}
            model = AssignedModel(
                policy.base_path, tuple(sorted(versions)), here, warm_up_requests=policy.warm_up_requests
            )
            self._set(copy.instance, name, model, told=copy.assigned is not None)

    def _set(self, one: str, name: str, model: AssignedModel | None, *, told: bool = True) -> None:
        before = self._models(one).get(name)
        if before == model:
            return
        if one not in self._assigned:
            self._assigned[one] = dict(self._models(one))
        instance = self._state.instances.get(one)
        old, new = set(before.versions if before else ()), set(model.versions if model else ())
        held = instance.held.get(name, frozenset()) if instance is not None else frozenset()
        taken = sum(self._state.size(name, v) for v in new - old - held)
        self._freed[one] = self._freed.get(one, 0.0) + taken - sum(self._state.size(name, v) for v in old - new - held)
        longer = (spelled(name, model) if model else 0) - (spelled(name, before) if before else 0)
        self._spelled[one] = self._spelled.get(one, 0) + longer
        if model is None:
            del self._assigned[one][name]
            self._tell_removed(name, one)
        else:
            self._assigned[one][name] = model
            if not told:
                self._tell("ModelPlaced", name, one, text=f"with version {', '.join(map(str, model.versions))}")

    def _tell_removed(self, name: str, one: str) -> None:
        if one in self._broken:
            which = ", ".join(map(str, sorted(self._tried.get(one, ()))))
            text = f"version {which} can't be loaded here; this copy goes elsewhere until the policy or version changes"
            self._tell("CopyMoved", name, one, text=text)
        else:
            self._tell("ModelRemoved", name, one, text="its copy here is unloaded")

    def _release(self, name: str) -> None:
        for one in sorted(self._state.holders.get(name, ())):
            self._set(one, name, None)

    def _remove(self, name: str) -> None:
        """No policy: what modelplane loaded is unloaded once it is drained, and routed as if there never was one."""
        self._broken = frozenset()
        self._release(name)
        if name in self._state.traffic:
            self._traffic[name] = None
        if name in self._state.rollouts:
            self._rollouts[name] = None
        self._state.waiting.discard(name)
        self._state.crowded.discard(name)
        self._state.balancing.discard(name)
        self._state.unmoved.discard(name)

    def _wait(self, view: View, resolved: Resolved) -> None:
        # Not those whose turn to load has not come: they are touched when it does.
        wanting = (
            view.short > 0
            or view.stuck > 0
            or not view.targets
            or any(self._has_no_room(view, copy) for copy in view.targets)
        )
        (self._state.waiting.add if wanting and view.managed else self._state.waiting.discard)(view.name)
        times = [resolved.look_at] if resolved.look_at is not None else []
        for copy in view.targets:
            away = self._state.away_since.get(copy.instance)
            if away is not None:
                times.append(max(away + self._settings.grace, self._now + _LOOK_AGAIN))
        if times:
            self._look_at[view.name] = min(*times, self._look_at.get(view.name, inf))

    def _has_no_room(self, view: View, copy: Copy) -> bool:
        missing = (view.wanted & copy.on_disk) - copy.has - copy.held
        return copy.usable and any(view.size(version) > copy.free for version in missing)

    def _tell(self, kind: str, model: str, instance: str, *, text: str) -> None:
        self._events.append(Event(self._now, kind, model, instance, text=text))


def _is_broken(copy: Copy, needed: frozenset[int]) -> bool:
    """Whether all that a copy is for failed to load there, and is not tried again."""
    there = copy.on_disk & needed
    return copy.alive and copy.usable and bool(there) and there <= copy.given_up and not copy.answered & needed


def _matches(policy: Policy, instance: Instance) -> bool:
    return all(instance.labels.get(name) == value for name, value in policy.selector.items())


def _named(record: TrafficRecord, name: str) -> set[int]:
    # With a weight of 0 too: it is one of a canary's two, and has nobody ready for a moment.
    weighted = set(record.weights)
    mirrored = {one.version for one in record.mirrors if one.model == name and one.version is not None}
    return weighted | set(record.labels.values()) | mirrored
