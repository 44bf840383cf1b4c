"""When a version is asked whether it answers, and what its answers make of it: by example, and in any history."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from monitor.proof_course import (
    COST,
    FALL,
    HUNG,
    LAST_RETRY,
    LEAST_PATIENCE,
    LONGEST_PAUSE,
    LONGEST_RISE_PAUSE,
    MOST_DOUBTED,
    RISE,
    SLOT,
    Course,
    Key,
    ReproofPolicy,
    Reproofs,
    Standing,
)
from monitor.servables import Outcome, Question
from registry.records import Proof
from tests.support.examples import examples

QUESTION = Question("Predict", b"x", "zeros")
GOOD = Outcome(Proof.PROVED, "answered zeros", question=QUESTION, seconds=0.001)
BAD = Outcome(Proof.FAILED, "INTERNAL: broken")
SILENT = Outcome(Proof.FAILED, "no answer within 5 s", silent=True)
UNASKED = Outcome(Proof.PENDING, "UNAVAILABLE: the batching queue is full")
POLICY = ReproofPolicy()


class World:
    """Versions of one instance and a clock."""

    def __init__(self, count: int = 1, policy: ReproofPolicy = POLICY) -> None:
        self.reproofs, self.now = Reproofs(policy), 100.0
        self.courses: dict[Key, Course] = {(f"m{n}", 1, n): Course() for n in range(count)}
        self.begun: list[float] = []
        """When each re-proof that the rate is for began."""
        for course in self.courses.values():
            course.loaded(self.now)
        for key in self.begin():
            self.end(key, GOOD)
        self.begun.clear()

    def begin(self) -> list[Key]:
        urgent = {key for key, course in self.courses.items() if course.urgent}
        begun = self.reproofs.begin(self.courses.items(), self.now)
        self.begun += [self.now for key in begun if key not in urgent]
        return begun

    def end(self, key: Key, outcome: Outcome) -> None:
        self.reproofs.ended(key, self.courses[key], outcome, self.now)

    def next(self) -> Key:
        """Pass the time until the next probe, and begin it."""
        due = self.reproofs.next_time(self.courses.items())
        assert due is not None
        self.now = max(self.now, due)
        (key,) = self.begin()
        return key

    def answer(self, *outcomes: Outcome) -> Standing:
        key = None
        for outcome in outcomes:
            key = self.next()
            self.end(key, outcome)
        assert key is not None
        return self.courses[key].standing


def test_one_failed_reproof_changes_nothing_and_the_second_comes_at_once() -> None:
    world = World()
    assert world.answer(BAD) is Standing.READY
    failed_at = world.now
    assert world.answer(BAD) is Standing.FAILING
    assert world.now - failed_at <= 1 / POLICY.rate
    assert FALL == 2


def test_two_good_ones_in_a_row_bring_it_back_with_its_first_proof() -> None:
    world = World()
    assert world.answer(BAD, BAD) is Standing.FAILING
    assert world.answer(GOOD, BAD, GOOD) is Standing.FAILING
    assert world.answer(Outcome(Proof.TRUSTED, "as before")) is Standing.READY
    (course,) = world.courses.values()
    assert (course.proof, course.detail) == (Proof.PROVED, "answered zeros")
    assert RISE == 2


def test_what_falls_again_and_again_has_to_hold_longer() -> None:
    world = World()
    pauses = []
    for _ in range(7):
        world.answer(BAD, BAD, GOOD)
        began = world.now
        world.answer(GOOD)
        pauses.append(round(world.now - began))
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    world.now += 3600
    world.answer(BAD, BAD, GOOD)
    began = world.now
    world.answer(GOOD)
    assert round(world.now - began) == 1, "an hour of good answers is forgiven"


def test_what_could_not_be_asked_counts_neither_way() -> None:
    world = World()
    assert world.answer(BAD, UNASKED, UNASKED) is Standing.READY
    assert world.answer(BAD) is Standing.FAILING


def test_a_slow_version_is_asked_less_often_and_waited_for_longer() -> None:
    world = World()
    (course,) = world.courses.values()
    assert course.patience(POLICY) == LEAST_PATIENCE
    world.answer(Outcome(Proof.PROVED, seconds=0.5))
    assert course.patience(POLICY) == 10.0
    ended = world.now
    world.next()
    assert world.now - ended == 0.5 * COST
    world.end(next(iter(world.courses)), Outcome(Proof.PROVED, seconds=20.0))
    assert course.patience(POLICY) == POLICY.deadline
    ended = world.now
    world.next()
    assert world.now - ended == LONGEST_PAUSE


def test_the_late_answers_of_what_hung_do_not_make_it_a_slow_one() -> None:
    world = World()
    (course,) = world.courses.values()
    late = Outcome(Proof.PROVED, seconds=25.0)
    assert world.answer(SILENT, SILENT, late, late) is Standing.READY
    assert course.patience(POLICY) == LEAST_PATIENCE
    ended = world.now
    world.next()
    assert world.now - ended == POLICY.interval


def test_many_versions_are_asked_in_turn_at_the_rate() -> None:
    world = World(300)
    asked = []
    for _ in range(300):
        key = world.next()
        world.end(key, GOOD)
        asked.append(key)
    assert len(set(asked)) == 300
    assert world.begun[-1] - world.begun[0] >= 299 / POLICY.rate - 1e-6


def test_those_that_fail_for_good_do_not_crowd_out_the_others() -> None:
    world = World(60)
    broken = {("m0", 1, 0)} | {(f"m{n}", 1, n) for n in range(30)}
    asked = set()
    for _ in range(300):
        key = world.next()
        asked.add(key)
        world.end(key, BAD if key in broken else GOOD)
    assert asked == world.courses.keys()
    assert not world.reproofs.hung, "errors are answers"


def test_several_that_are_silent_say_that_the_server_hangs_and_one_that_comes_back_that_it_does_not() -> None:
    world = World(50)
    asked: set[Key] = set()
    while not world.reproofs.hung:
        key = world.next()
        asked.add(key)
        world.end(key, SILENT)
    assert len(world.reproofs.hung) == HUNG
    for _ in range(20):
        key = world.next()
        assert key in world.reproofs.hung, "the others are left alone: each would hold a thread of the server"
        world.end(key, SILENT)
    while world.reproofs.hung:
        world.end(world.next(), GOOD)
    assert sum(course.standing is Standing.FAILING for course in world.courses.values()) == HUNG - 1
    for _ in range(100):
        world.end(world.next(), GOOD)
    assert all(course.standing is Standing.READY for course in world.courses.values())


def test_a_lost_connection_is_asked_at_once_even_during_a_probe() -> None:
    world = World()
    key = world.next()
    world.courses[key].connection_lost(world.now)
    world.end(key, UNASKED)
    assert world.begin() == [key]
    assert world.courses[key].patience(POLICY) == POLICY.deadline, "a new process is slow at first"


OUTCOMES = (GOOD, BAD, SILENT, UNASKED, Outcome(Proof.TRUSTED, "refused as before", question=QUESTION, seconds=3.0))


class AnyCourse(RuleBasedStateMachine):
    """Whatever its versions answer: never READY without a good last proof or a single bad one after it, never FAILING
    for one, at no more than the rate, and back in service once they answer."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(6)
        self.asking: set[Key] = set()
        self.last: dict[Key, list[bool]] = {key: [True] for key in self.world.courses}
        """The last outcomes that say something, oldest first."""

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 7.0, 60.0, 2000.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @rule()
    def until_due(self) -> None:
        due = self.world.reproofs.next_time(self.world.courses.items())
        if due is not None:
            self.world.now = max(self.world.now, due)

    @precondition(lambda self: self.asking)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def ended(self, data: st.DataObject, outcome: Outcome) -> None:
        key = data.draw(st.sampled_from(sorted(self.asking)))
        self.finish(key, outcome)

    @rule(number=st.integers(0, 5))
    def lose(self, number: int) -> None:
        self.world.courses[(f"m{number}", 1, number)].connection_lost(self.world.now)

    def finish(self, key: Key, outcome: Outcome) -> None:
        self.asking.discard(key)
        before = self.world.courses[key].standing
        self.world.end(key, outcome)
        if outcome is not UNASKED:
            self.last[key].append(outcome.proof is not Proof.FAILED)
        after, last = self.world.courses[key].standing, self.last[key]
        if before is not after:
            assert last[-2:] == ([True, True] if after is Standing.READY else [False, False])
        if after is Standing.READY:
            assert any(last[-FALL:])
        else:
            assert not all(last[-RISE:])

    @invariant()
    def probes_begin_at_the_rate(self) -> None:
        begun = self.world.begin()
        assert not self.asking & set(begun), "at most one probe of a version at a time"
        self.asking |= set(begun)
        times = self.world.begun
        assert all(later - earlier >= 1 / POLICY.rate - 1e-9 for earlier, later in pairwise(times))

    def teardown(self) -> None:
        """All of them answer from now on."""
        deadline = self.world.now + 2 * (LAST_RETRY + LONGEST_RISE_PAUSE + LONGEST_PAUSE + 2 * POLICY.interval)
        while self.world.now < deadline:
            for key in sorted(self.asking):
                self.finish(key, GOOD)
            if all(c.standing is Standing.READY for c in self.world.courses.values()) and not self.world.reproofs.hung:
                return
            due = self.world.reproofs.next_time(self.world.courses.items())
            assert due is not None
            self.world.now = max(self.world.now, due)
            self.asking |= set(self.world.begin())
        raise AssertionError("not all of them came back")


TestAnyCourse = AnyCourse.TestCase
TestAnyCourse.settings = settings(max_examples=examples(60), stateful_step_count=50, deadline=None)


def test_after_a_lost_connection_a_thousand_are_asked_a_few_at_a_time_and_a_new_one_at_once() -> None:
    world = World(1000)
    for course in world.courses.values():
        course.connection_lost(world.now)
    first = world.begin()
    assert len(first) == MOST_DOUBTED
    assert not world.begin()
    new = ("new", 1, 1000)
    world.courses[new] = Course()
    world.courses[new].loaded(world.now)
    assert world.begin() == [new]
    world.end(first[0], GOOD)
    assert len(world.begin()) == 1


def test_what_hangs_after_a_lost_connection_holds_up_the_rest_for_two_seconds_only() -> None:
    world = World(2 * MOST_DOUBTED)
    for course in world.courses.values():
        course.connection_lost(world.now)
    first = world.begin()
    assert world.reproofs.next_time(world.courses.items()) == world.now + SLOT
    world.now += SLOT
    assert not set(first) & set(second := world.begin())
    assert len(second) == MOST_DOUBTED
