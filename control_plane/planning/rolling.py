"""Which versions each instance shall hold next. Pure.

Invariants: no version is taken from an instance that traffic, as it is written, names; a version is added only where
its files are and there is room; no more instances load the model at a time than its policy allows, and at least one;
a copy leaves only once as many others are ready as there shall and can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import floor

from control_plane.planning.view import Copy, View
from registry.policy.model import Versions

_ROUNDING = 1e-9


def choose_versions(
    versions: Versions, candidates: Iterable[int], hopeless: Callable[[int], bool], refused: Iterable[int] = ()
) -> frozenset[int]:
    """The versions that a policy wants of those that there are. If those have all failed for good the next newest is
    wanted besides, so that a broken version is not all that a new instance has."""
    there = sorted(set(candidates) - set(refused), reverse=True)
    if versions.specific:
        return frozenset(versions.specific) & frozenset(there)
    if versions.all or versions.latest is None:
        return frozenset(there)
    count = versions.latest
    while count < len(there) and all(map(hopeless, there[:count])):
        count += 1
    return frozenset(there[:count])


def next_versions(view: View, keep: frozenset[int], weighted: frozenset[int]) -> Mapping[str, frozenset[int] | None]:
    """What to assign from now on, by instance, as far as it is not what is assigned; None: nothing of the model.
    `keep`: versions to hold besides those wanted; `weighted`: those of them that answer unversioned requests."""
    moves: dict[str, frozenset[int] | None] = {}
    loading = sum(copy.loading for copy in (*view.targets, *view.leavers))
    budget = max(1, floor(view.rolling.max_loading * len(view.targets) + _ROUNDING)) - loading
    busy = loading > 0 or any(copy.emptied for copy in view.targets)
    # Whoever was emptied has waited longest.
    for copy in sorted(view.targets, key=lambda one: (not one.emptied, len(one.ready & weighted), one.instance)):
        if not copy.usable or not copy.told:
            continue
        hold = (view.wanted | keep) & (copy.on_disk | copy.has)
        added = frozenset[int]()
        if budget > 0 and not copy.loading:
            added = _fitting(view, copy, hold - copy.has, weighted)
        after = (copy.has & hold) | added
        if added:
            budget, busy = budget - 1, True
        elif not busy and _may_swap(view, copy, weighted):
            after, budget, busy = after - view.replaceable(copy), budget - 1, True
        if after != copy.has:
            moves[copy.instance] = after
    moves.update({copy.instance: None for copy in view.leavers if _may_leave(view, copy, weighted)})
    return moves


def _fitting(view: View, copy: Copy, versions: frozenset[int], weighted: frozenset[int]) -> frozenset[int]:
    """As many of these as have room, the most important first."""

    def importance(version: int) -> tuple[bool, bool, int]:
        elsewhere = any(version in other.ready for other in view.targets if other is not copy)
        return version in weighted and not elsewhere, version == view.goal, version

    fitting, free = set(), copy.free
    for version in sorted(versions, key=importance, reverse=True):
        needed = 0.0 if version in copy.held else view.size(version)
        if needed <= free:
            fitting.add(version)
            free -= needed
    return frozenset(fitting)


def _may_swap(view: View, copy: Copy, weighted: frozenset[int]) -> bool:
    """Whether the old versions may leave this instance first, for there is no room for both: while another one answers
    for each of them, and until half of the instances have the new one, for then traffic goes there."""
    if not view.tight(copy):
        return False
    have = sum(view.goal in other.has for other in view.targets)
    answered = all(
        any(version in other.ready for other in view.targets if other is not copy)
        for version in view.replaceable(copy) & weighted
    )
    return answered and 2 * have < len(view.targets)


def _may_leave(view: View, copy: Copy, weighted: frozenset[int]) -> bool:
    """Whether nothing is lost with this copy that there shall and can be."""
    needed = copy.ready & weighted if copy.alive else weighted
    for version in needed:
        able = [one for one in view.targets if one.alive and version not in one.failed]
        able = [one for one in able if version in one.on_disk | one.has]
        possible = min(len(able), view.wish.policy.replicas or len(able))
        if sum(version in one.ready for one in able) < max(1, possible):
            return False
    return True
