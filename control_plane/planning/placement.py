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
    """`targets`: where it shall be; `leavers`: where it is and shall not; `short`: copies that nobody can take;
    `stuck`: targets that are of no use, or in a crowded zone, and that nobody has the room to take the place of;
    `broken`: leavers that are of no use where they are; `balancing`: a copy goes to a zone with fewer of them."""

    targets: tuple[Copy, ...]
    leavers: tuple[Copy, ...]
    short: int = 0
    stuck: int = 0
    broken: tuple[Copy, ...] = ()
    balancing: bool = False


def place(
    copies: Sequence[Copy],
    others: Callable[[], Iterable[Copy]],
    replicas: int | None,
    fits: Callable[[Copy], bool],
    broken: Callable[[Copy], bool] = lambda copy: False,
    *,
    balance: bool = False,
) -> Placement:
    """`copies`: the instances to which the model is assigned; `others`: those to which it could be; `fits`: whether
    one of the latter has the files and the room; `broken`: whether one of the former is of no use where it is, and may
    be elsewhere. `replicas` None: all that match. `balance`: whether a copy may move for the zones' sake alone."""
    staying = [copy for copy in copies if not copy.gone]
    leavers = [copy for copy in copies if copy.gone]
    if replicas is None:
        # Without a look at the room: what has none shows as such, instead of being left out silently.
        added = [copy for copy in others() if copy.usable and copy.on_disk]
        return Placement(tuple(staying + added), tuple(leavers))
    surplus = _surplus(staying, len(staying) - replicas)
    staying = [copy for copy in staying if copy not in surplus]
    missing = max(0, replicas - len(staying))
    useless = [copy for copy in staying if broken(copy)]
    # Whom nobody is looked for, nobody is asked: that costs a look at every instance.
    free = [copy for copy in others() if copy.usable and fits(copy)] if missing or useless else []
    added = _choose(staying, free, missing)
    short = missing - len(added)
    instead = _choose([copy for copy in (*staying, *added) if copy not in useless], free, len(useless))
    moved = useless[: len(instead)]
    rest = [copy for copy in staying if copy not in moved]
    stuck = len(useless) - len(moved)
    if balance and not (leavers or surplus or useless or missing):
        leaving, better, stuck = _balance(staying, others, fits)
        if leaving is not None and better is not None:
            rest = [copy for copy in staying if copy is not leaving]
            return Placement((*rest, better), (leaving,), balancing=True)
    failing = [*moved, *(copy for copy in surplus if broken(copy))]
    return Placement((*rest, *added, *instead), (*leavers, *surplus, *moved), short, stuck, tuple(failing))


def _balance(
    staying: Sequence[Copy], others: Callable[[], Iterable[Copy]], fits: Callable[[Copy], bool]
) -> tuple[Copy | None, Copy | None, int]:
    """Who goes, and who comes, so that the zones have more equal numbers; and whether only room is missing for that.
    One at a time, and only once all are ready for all that they have."""
    zones = Counter(copy.zone for copy in staying)
    most = max(zones.values(), default=0)
    if most < 2 or "" in zones or not all(map(_is_settled, staying)):
        return None, None, 0
    (leaving,) = _surplus([copy for copy in staying if zones[copy.zone] == most], 1)
    # Two fewer, or it would only be the other way round.
    emptier = [copy for copy in others() if copy.usable and copy.zone and zones[copy.zone] <= most - 2]
    emptier = [copy for copy in emptier if leaving.has <= copy.on_disk]
    fitting = [copy for copy in emptier if fits(copy)]
    chosen = _choose([copy for copy in staying if copy is not leaving], fitting, 1)
    return (leaving, chosen[0], 0) if chosen else (None, None, int(bool(emptier)))


def _is_settled(copy: Copy) -> bool:
    return copy.alive and copy.usable and bool(copy.has) and copy.has <= copy.ready


def _choose(staying: Iterable[Copy], candidates: list[Copy], count: int) -> list[Copy]:
    """Up to `count` of the candidates, which are taken out of these."""
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
            # A copy that is loading in a better zone stays: who leaves does so when it is ready.
            key=lambda copy: (
                copy.alive,
                copy.usable,
                not copy.failed,
                -zones[copy.zone],
                len(copy.ready),
                copy.free,
                -copy.load,
                copy.instance,
            ),
        )
        rest.remove(worst)
        leaving.append(worst)
    return leaving
