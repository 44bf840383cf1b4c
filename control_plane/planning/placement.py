"""On which instances a model shall be. Pure.

Invariant: an instance that has a copy keeps it as long as it may and is needed, so a change moves no more copies than
it has to; what is added is spread over the zones, where there is room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from control_plane.planning.view import Copy


@dataclass(frozen=True, slots=True)
class Placement:
    """`targets`: where it shall be; `leavers`: where it is and shall not; `short`: copies that nobody can take."""

    targets: tuple[Copy, ...]
    leavers: tuple[Copy, ...]
    short: int = 0


def place(
    copies: Sequence[Copy],
    others: Callable[[], Iterable[Copy]],
    replicas: int | None,
    fits: Callable[[Copy], bool],
) -> Placement:
    """`copies`: the instances to which the model is assigned; `others`: those to which it could be; `fits`: whether
    one of the latter has the files and the room. `replicas` None: all that match."""
    staying = [copy for copy in copies if not copy.gone]
    leavers = [copy for copy in copies if copy.gone]
    if replicas is None:
        # Without a look at the room: what has none shows as such, instead of being left out silently.
        added = [copy for copy in others() if copy.usable and copy.on_disk]
        return Placement(tuple(staying + added), tuple(leavers))
    surplus = _surplus(staying, len(staying) - replicas)
    staying = [copy for copy in staying if copy not in surplus]
    missing = replicas - len(staying)
    added = _choose(staying, [copy for copy in others() if copy.usable and fits(copy)], missing) if missing > 0 else []
    return Placement((*staying, *added), (*leavers, *surplus), max(0, missing - len(added)))


def _choose(staying: Iterable[Copy], candidates: list[Copy], count: int) -> list[Copy]:
    zones = Counter(copy.zone for copy in staying)
    chosen: list[Copy] = []
    while candidates and len(chosen) < count:
        best = min(candidates, key=lambda copy: (zones[copy.zone], not copy.held, -copy.free, copy.load, copy.instance))
        candidates.remove(best)
        chosen.append(best)
        zones[best.zone] += 1
    return chosen


def _surplus(staying: Iterable[Copy], count: int) -> list[Copy]:
    rest, leaving = list(staying), list[Copy]()
    while len(leaving) < count:
        zones = Counter(copy.zone for copy in rest)
        worst = min(
            rest,
            key=lambda copy: (copy.alive, len(copy.ready), -zones[copy.zone], copy.free, -copy.load, copy.instance),
        )
        rest.remove(worst)
        leaving.append(worst)
    return leaving
