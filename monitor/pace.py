"""Decides which model's status to look at next, and when. Pure: no I/O, `now` is given.

Invariant: there are never more than `rate` looks a second, one model is never looked at twice at once nor sooner than
`interval` after its last answer, and as long as the server answers no model waits longer than `slowest` from one
answer to its next look, or than 2 * models/`rate` where the rate does not allow that (and a few milliseconds).

TensorFlow Serving has no call that tells of all its models, so each is asked by itself, some 0.4 ms of CPU here. That
is 0.7 ms if each wakes a sleeping process, so looks come a few at a time, with `interval` * BATCH between, and the
round's up to an `interval` before their time. Two queues share the looks:

    round     all models, the one looked at least recently first, one after another at even distances. With few models
              each comes every `interval`; with more of them a tenth of the rate is used, and more only as far as
              `slowest` demands. Never less than one call in `interval`: it is also the heartbeat that finds out that
              the server has gone, however many models there are.
    restless  models where something goes on, each every `interval`: it was seen on the way from one state to another,
              it gave no answer, or something about it changed less than CALM ago.

If both have one to look at they take turns. A change on a model that was calm may be a reload that concerns others:
the round then goes once through all models as fast as it may (a sweep). A server that gives no answer at all is asked
by heartbeats alone, and swept when it answers again.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

CALM = 3.0
"""Seconds after a change in which more may follow: a server looks at its files once a second, and its manager takes
0.1 s to load or unload one version."""
IDLE_SHARE = 0.1
"""Of the rate: what the round uses while there is no need for more."""
BATCH = 0.2
"""Of the interval: what lies between two batches of looks."""
SILENT = 3
"""Looks in a row without an answer after which the server counts as silent."""


@dataclass(slots=True)
class _Model:
    ended: float = -math.inf
    """When its last look ended."""
    restless_until: float = -math.inf
    unsettled: bool = False
    due: float | None = None
    """Its place in the restless queue."""
    looking: bool = False


class Pace:
    """`watch` says which models there are; `take` gives out a look, `ended` gives it back."""

    def __init__(self, *, interval: float, slowest: float, rate: float) -> None:
        """Seconds, and calls per second."""
        self._interval, self._slowest, self._gap = interval, max(slowest, interval), 1.0 / rate
        self._between = interval * BATCH
        self._models: dict[str, _Model] = {}
        self._round: OrderedDict[str, None] = OrderedDict()
        self._restless: list[tuple[float, str]] = []
        self._free_at = self._round_at = self._batch_at = -math.inf
        self._round_had_it = False
        self._sweep = 0
        self._silence = 0

    # --- what is known --------------------------------------------------------------------------------------------

    def watch(self, names: Iterable[str], now: float) -> None:
        """These models and no others. A new one comes next, and is restless."""
        wanted = frozenset(names)
        for name in self._models.keys() - wanted:
            del self._models[name]
            self._round.pop(name, None)
        for name in sorted(wanted - self._models.keys(), reverse=True):
            self._models[name] = _Model(restless_until=now + CALM)
            self._round[name] = None
            self._round.move_to_end(name, last=False)
            self._queue(name, now)

    def hasten(self, names: Iterable[str], now: float) -> None:
        """Something is likely to change on these models."""
        for name in names:
            if model := self._models.get(name):
                model.restless_until = now + CALM
                if not model.looking:
                    self._queue(name, model.ended + self._interval)

    def sweep(self) -> None:
        """Something may have changed on any model: once through all, as fast as the rate allows."""
        self._sweep = len(self._models)

    @property
    def silent(self) -> bool:
        """Whether the server has stopped to answer."""
        return self._silence >= SILENT

    @property
    def batch(self) -> int:
        """How many looks may come at once, for none before."""
        return max(1, int(self._between / self._gap))

    @property
    def bound(self) -> float:
        """The longest that a model waits now, in seconds."""
        return max(self._slowest, 2 * len(self._models) * self._gap)

    # --- looks ----------------------------------------------------------------------------------------------------

    def take(self, now: float) -> str | None:
        """The model to look at now, if it is time for one; to be given back with `ended`."""
        name = self._choose(now) if now >= self._free(now) else None
        if name is None:
            return None
        self._batch_at = now
        model = self._models[name]
        model.looking, model.due = True, None
        del self._round[name]
        self._free_at = max(self._free_at, now) + self._gap
        return name

    def ended(self, name: str, now: float, *, answered: bool, changed: bool = False, unsettled: bool = False) -> None:
        """A look ended: `changed`: its answer is another than the last; `unsettled`: more is sure to follow."""
        self._hear(answered)
        model = self._models.get(name)
        if model is None or not model.looking:
            return
        surprise = changed and not model.unsettled and now >= model.restless_until
        model.ended, model.looking = now, False
        model.unsettled = unsettled or not answered
        if changed:
            model.restless_until = now + CALM
        self._round[name] = None
        if model.unsettled or now < model.restless_until:
            self._queue(name, now + self._interval)
        if surprise:
            self.sweep()

    def wake(self, now: float) -> float | None:
        """When `take` next has something to give; None: not before something is told."""
        times = [at for at in (self._round_due(), self._restless_due()) if at is not None]
        return max(self._free(now), min(times)) if times else None

    # --- inside ---------------------------------------------------------------------------------------------------

    def _hear(self, answered: bool) -> None:
        if not answered:
            self._silence += 1
        elif self.silent:
            self._silence = 0
            self.sweep()
        else:
            self._silence = 0

    def _free(self, now: float) -> float:
        """When the rate allows the next look, and the batch is either this moment's or the next."""
        batch = now if self._batch_at == now else self._batch_at + self._between
        return max(batch, self._free_at - (self.batch - 1) * self._gap)

    def _choose(self, now: float) -> str | None:
        # Who is awake looks ahead.
        ahead = self._interval if self._batch_at == now else 0.0
        round_due, restless_due = self._round_due(ahead), self._restless_due()
        in_round = round_due is not None and round_due <= now
        in_restless = restless_due is not None and restless_due <= now
        if in_round and not (in_restless and self._round_had_it):
            self._round_had_it = True
            self._sweep = max(0, self._sweep - 1)
            # A late call is caught up with, but not many: they would come in a burst.
            step = self._step()
            self._round_at = max(self._round_at, now - max(step, self._between)) + step
            return next(iter(self._round))
        if in_restless:
            self._round_had_it = False
            return self._restless[0][1]
        return None

    def _step(self) -> float:
        """Seconds between two models of the round."""
        if self.silent:
            return max(self._interval, self._gap)
        count = max(1, len(self._models))
        even = min(self._gap / IDLE_SHARE, self._slowest / count, self._interval)
        return max(even, self._gap, self._interval / count)

    def _round_due(self, ahead: float = 0.0) -> float | None:
        if not self._round:
            return None
        ended = self._models[next(iter(self._round))].ended
        if self.silent:
            return max(ended + self._interval, self._round_at)
        if self._sweep:
            return ended + self._interval
        # As models come and go the even distances may change: the bound is the bound.
        return max(ended + self._interval, min(self._round_at, ended + self._slowest) - ahead)

    def _restless_due(self) -> float | None:
        if self.silent:
            return None
        while self._restless:
            due, name = self._restless[0]
            model = self._models.get(name)
            if model is not None and model.due == due:
                return due
            heapq.heappop(self._restless)
        return None

    def _queue(self, name: str, due: float) -> None:
        model = self._models[name]
        if model.due is None or due < model.due:
            model.due = due
            heapq.heappush(self._restless, (due, name))
