"""The pace of polling: fast where something changes, never slower than the bound, never above the rate."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from monitor.pace import CALM, Pace

FAST = 0.1


@dataclass
class Run:
    """A pace, a clock, and a server that answers after `latency`; what was looked at, and when."""

    pace: Pace
    now: float = 1000.0
    latency: dict[str, float] = field(default_factory=dict)
    unsettled: set[str] = field(default_factory=set)
    changing: set[str] = field(default_factory=set)
    """Their next answer is another one."""
    deaf: bool = False
    looks: list[tuple[float, str]] = field(default_factory=list)
    waits: dict[str, list[float]] = field(default_factory=dict)
    _under_way: list[tuple[float, str]] = field(default_factory=list)
    _ended: dict[str, float] = field(default_factory=dict)

    def go(self, seconds: float) -> Run:
        end = self.now + seconds
        while True:
            self._take()
            times = [at for at, _ in self._under_way[:1]]
            if (wake := self.pace.wake(self.now)) is not None:
                times.append(wake)
            if not times or min(times) > end:
                self.now = end
                return self
            # A clock that stands still would be a busy loop.
            assert min(times) >= self.now
            self.now = max(self.now, min(times))
            while self._under_way and self._under_way[0][0] <= self.now:
                self._end(heapq.heappop(self._under_way)[1])

    def _take(self) -> None:
        while (name := self.pace.take(self.now)) is not None:
            self.looks.append((self.now, name))
            if name in self._ended:
                self.waits.setdefault(name, []).append(self.now - self._ended[name])
            heapq.heappush(self._under_way, (self.now + self.latency.get(name, 0.001), name))

    def _end(self, name: str) -> None:
        self._ended[name] = self.now
        changed = name in self.changing
        self.changing.discard(name)
        self.pace.ended(
            name, self.now, answered=not self.deaf, changed=changed and not self.deaf, unsettled=name in self.unsettled
        )

    def longest_wait(self) -> float:
        open_ended = [self.now - at for at in self._ended.values()]
        return max(itertools.chain(open_ended, *self.waits.values()))

    def times(self, name: str, since: float = 0.0) -> list[float]:
        return [at for at, other in self.looks if other == name and at >= since]


def names(count: int) -> list[str]:
    return [f"m{number}" for number in range(count)]


def run(count: int, *, slowest: float = 5.0, rate: float = 500.0, interval: float = FAST) -> Run:
    pace = Pace(interval=interval, slowest=slowest, rate=rate)
    started = Run(pace)
    pace.watch(names(count), started.now)
    return started


def calm(count: int, **how: float) -> Run:
    """Past the restlessness of the start."""
    started = run(count, **how)
    started.go(2 * CALM + 2 * started.pace.bound)
    started.looks.clear()
    started.waits.clear()
    return started


def distances(times: Iterable[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


EVENTS = st.lists(
    st.tuples(
        st.floats(0.0, 3.0), st.sampled_from(["change", "unsettle", "settle", "hasten", "sweep", "deaf", "hear"])
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.floats(0.2, 4.0), st.floats(2.0, 200.0), EVENTS, st.randoms(use_true_random=False))
def test_never_above_the_rate_and_never_slower_than_the_bound(
    count: int, slowest: float, rate: float, events: list[tuple[float, str]], random: object
) -> None:
    seen = run(count, slowest=slowest, rate=rate)
    silent = False
    for pause, event in events:
        name = names(count)[len(seen.looks) % count]
        match event:
            case "change":
                seen.changing.add(name)
            case "unsettle":
                seen.unsettled.update(names(count)[: len(seen.looks) % count])
            case "settle":
                seen.unsettled.clear()
            case "hasten":
                seen.pace.hasten([name], seen.now)
            case "sweep":
                seen.pace.sweep()
            case "deaf":
                seen.deaf = silent = True
            case "hear":
                seen.deaf = False
        seen.go(pause)
    seen.go(2 * slowest)
    times = [at for at, _ in seen.looks]
    batch = seen.pace.batch
    for index, at in enumerate(times):
        # Any window that starts with a look: the rate, and one batch.
        late = next((other for other in range(index, len(times)) if times[other] > at + 1.0), len(times))
        assert late - index <= rate + batch + 1
    for name in names(count):
        assert all(wait >= FAST * 0.999 for wait in seen.waits.get(name, []))
    if not silent:
        # Besides, what a batch and a turn of the other queue take.
        assert seen.longest_wait() <= seen.pace.bound + 2 * FAST + 4 / rate


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 12), st.floats(100.0, 500.0))
def test_what_changes_is_polled_fast_if_the_rate_allows(count: int, busy: int, rate: float) -> None:
    # Half of the rate at least is theirs.
    assume(busy <= count and busy / FAST <= rate / 2)
    seen = calm(count, rate=rate)
    seen.unsettled.update(names(busy))
    seen.pace.hasten(names(busy), seen.now)
    since = seen.now
    seen.go(3.0)
    for name in names(busy):
        assert max(distances(seen.times(name, since))) <= FAST + 0.001 + 0.02 + 0.05


def test_one_model_is_polled_every_interval_for_ever() -> None:
    seen = calm(1).go(10.0)
    assert 95 <= len(seen.looks) <= 100
    assert max(distances(seen.times("m0"))) < 0.102


def test_many_idle_models_are_polled_at_the_bound_one_after_another() -> None:
    seen = calm(1000).go(20.0)
    assert 3900 <= len(seen.looks) <= 4100, "200 a second"
    order = [name for _, name in seen.looks]
    assert order[:1000] == order[1000:2000], "in turn"
    counts = [len(list(group)) for _, group in itertools.groupby(seen.looks, key=lambda look: round(look[0], 3))]
    assert max(counts) <= seen.pace.batch, "no bursts"


def test_a_change_on_a_calm_model_brings_the_others_forward() -> None:
    seen = calm(1000)
    seen.changing.add("m500")
    seen.go(7.5)
    (found, *_) = seen.times("m500")
    assert {name for at, name in seen.looks if found <= at <= found + 2.4} == set(names(1000))


def test_a_server_that_has_gone_is_noticed_at_once_and_then_asked_by_heartbeats_alone() -> None:
    seen = calm(1000)
    seen.deaf = True
    seen.looks.clear()
    seen.go(0.06)
    assert seen.pace.silent, "three failures within an interval"
    seen.looks.clear()
    seen.go(5.0)
    assert 40 <= len(seen.looks) <= 51
    assert max(distances(at for at, _ in seen.looks)) <= FAST + 0.03
    seen.deaf = False
    seen.looks.clear()
    seen.go(3.0)
    assert {name for _, name in seen.looks} == set(names(1000)), "all are looked at when it is back"


def test_one_slow_model_delays_no_other() -> None:
    seen = calm(10)
    seen.latency["m3"] = 60.0
    seen.go(10.0)
    assert all(max(distances(seen.times(name))) < 0.3 for name in names(10) if name != "m3")


def test_models_come_and_go() -> None:
    seen = calm(100)
    seen.pace.watch([*names(50), "new"], seen.now)
    since = seen.now
    seen.go(0.021)
    assert "new" in {name for _, name in seen.looks[-seen.pace.batch :]}
    seen.go(2.0)
    assert {name for at, name in seen.looks if at > since} == {*names(50), "new"}
    assert len(seen.times("new", since)) >= 15
    seen.pace.watch([], seen.now)
    assert seen.pace.wake(seen.now) is None
    seen.pace.hasten(["m0"], seen.now)
    seen.pace.ended("m0", seen.now, answered=True)
    assert seen.pace.take(seen.now + 10) is None
