"""Which lost leases are believed: thresholds, evidence, and that it always ends. No I/O, no sleeping."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.catalog import Catalog
from control_plane.guard import GuardLog
from control_plane.suspect_checks import Outcome, Verdicts
from control_plane.suspects import Belief, Hold, SuspectPolicy, Suspects, Verdict
from registry.follow import Changes, Connection, Snapshot
from registry.keys import InstanceKey, Keyspace, PlaneKey, ReadyKey
from registry.records import PlaneRecord, ReadyRecord, ReadyState, encode_plane, encode_ready

SPACE = Keyspace()
POLICY = SuspectPolicy(grace=10, bulk_share=0.5, bulk_minimum=2, bulk_hold=60)


def hold(suspects: Suspects, instance: str, now: float, present: int) -> Hold | None:
    (found,) = (one.hold for one in suspects.suspicions(now, present=present) if one.instance == instance)
    return found


def lost(*instances: str, heard: float | None = 0.1) -> Suspects:
    suspects = Suspects(POLICY)
    for name in instances:
        suspects.lost(name, 0.0)
    if heard is not None:
        suspects.heard(heard, monitor=False)
    return suspects


def test_a_single_loss_waits_for_its_grace_time() -> None:
    suspects = lost("a")
    assert hold(suspects, "a", 9.9, 3) is Hold.GRACE
    assert suspects.believed(10, present=3) == {"a": Belief.UNPROVEN}


@pytest.mark.parametrize(("count", "present", "bulk"), [(1, 0, False), (2, 3, False), (2, 2, True), (3, 3, True)])
def test_a_bulk_is_a_share_of_all_and_a_least_number(count: int, present: int, bulk: bool) -> None:
    suspects = lost(*"abc"[:count])
    assert hold(suspects, "a", 5, present) is (Hold.BULK if bulk else Hold.GRACE)


def test_the_newest_loss_counts_for_the_whole_bulk() -> None:
    suspects = lost("a")
    suspects.lost("b", 30.0)
    suspects.heard(31, monitor=False)
    assert suspects.believed(89.9, present=1) == {}
    assert set(suspects.believed(90, present=1)) == {"a", "b"}


def test_time_alone_is_no_evidence() -> None:
    suspects = lost("a", heard=None)
    suspects.heard(0.0, monitor=True)
    assert hold(suspects, "a", 1e6, 3) is Hold.NOT_EVIDENT, "what came with the loss does not count"
    suspects.heard(1e6, monitor=False)
    assert hold(suspects, "a", 1e6, 3) is None


def test_where_all_leases_are_lost_a_monitor_must_write_first() -> None:
    suspects = lost("a", "b")
    assert hold(suspects, "a", 1e6, 0) is Hold.NOT_EVIDENT
    suspects.heard(1e6 + 1, monitor=True)
    assert hold(suspects, "a", 1e6 + 1, 0) is None


def test_a_reconnect_asks_for_new_evidence_and_a_new_grace_time() -> None:
    suspects = lost("a")
    asked = suspects.asked
    suspects.connection(connected=False, now=5)
    assert hold(suspects, "a", 1e6, 3) is Hold.AWAY
    suspects.connection(connected=True, now=100)
    assert suspects.asked == asked + 1
    assert hold(suspects, "a", 109, 3) is Hold.GRACE
    assert hold(suspects, "a", 110, 3) is Hold.NOT_EVIDENT
    suspects.heard(111, monitor=False)
    assert hold(suspects, "a", 111, 3) is None


def test_what_answers_is_held_and_what_does_not_may_go() -> None:
    suspects = lost("a", "b")
    assert suspects.checked("a", Verdict.ANSWERS)
    assert suspects.checked("b", Verdict.DEAD)
    assert not suspects.checked("b", Verdict.DEAD, "again")
    assert not suspects.checked("stranger", Verdict.DEAD)
    assert suspects.believed(10, present=9) == {"a": Belief.OVER, "b": Belief.PROVED}


def test_one_that_comes_back_and_is_lost_again_is_a_new_loss() -> None:
    suspects = lost("a")
    suspects.returned("a", 1.0)
    suspects.left("a", 2.0)
    suspects.heard(3.0, monitor=False)
    assert suspects.believed(11.9, present=3) == {}
    assert suspects.believed(12.0, present=3) == {"a": Belief.UNPROVEN}


# The checks' verdicts.


def test_two_failures_in_a_row_are_a_verdict_while_something_answers() -> None:
    verdicts = Verdicts()
    outcomes = {"a": Outcome.REFUSED, "b": Outcome.ANSWERED, "c": Outcome.UNREACHABLE}
    assert verdicts.judge(outcomes, 0) == {"a": Verdict.UNKNOWN, "b": Verdict.ANSWERS, "c": Verdict.UNKNOWN}
    assert verdicts.judge(outcomes, 1) == {"a": Verdict.DEAD, "b": Verdict.ANSWERS, "c": Verdict.UNKNOWN}
    assert verdicts.judge({"a": Outcome.ANSWERED}, 2) == {"a": Verdict.ANSWERS}


def test_a_control_plane_that_reaches_nobody_has_learnt_nothing() -> None:
    verdicts = Verdicts()
    for now in range(5):
        assert verdicts.judge({"a": Outcome.REFUSED}, now) == {"a": Verdict.UNKNOWN}
    assert verdicts.judge({"a": Outcome.REFUSED}, 5, others_answer=True) == {"a": Verdict.DEAD}
    assert verdicts.judge({"a": Outcome.REFUSED}, 1000) == {"a": Verdict.UNKNOWN}


# Whole histories.

INSTANCES, MODELS = "abcd", "mn"
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("register"), st.sampled_from(INSTANCES), st.sampled_from(MODELS)),
        st.tuples(st.just("expire"), st.sampled_from(INSTANCES), st.just("")),
        st.tuples(st.just("remove"), st.sampled_from(INSTANCES), st.sampled_from(MODELS)),
        st.tuples(st.just("wipe"), st.just(""), st.just("")),
        st.tuples(st.just("reconnect"), st.just(""), st.just("")),
        st.tuples(st.just("check"), st.sampled_from(INSTANCES), st.sampled_from([one.name for one in Verdict])),
        st.tuples(st.just("wait"), st.sampled_from(["1", "11", "70"]), st.just("")),
    ),
    max_size=40,
)


class History:
    """Drives a catalog and remembers what stands in the registry."""

    def __init__(self) -> None:
        self.catalog = Catalog(SPACE, POLICY)
        self.catalog.apply(Snapshot(1, {}), 0.0)
        self.now, self.revision = 0.0, 1
        self.held: dict[str, set[str]] = {}

    def changes(self, puts: dict[str, bytes], deletes: set[str], *, relisted: bool = False) -> None:
        self.revision += 1
        self.catalog.apply(Changes(self.revision, puts, frozenset(deletes), relisted), self.now)

    def register(self, name: str, model: str) -> None:
        self.held.setdefault(name, set()).add(model)
        record = ReadyRecord(ReadyState.READY, "10.0.0.1", 9000 + ord(name[0]))
        key = SPACE.make(ReadyKey(model, 1, name))
        self.changes({SPACE.make(InstanceKey(name)): b"{}", key: encode_ready(record)}, set())

    def keys(self, name: str) -> set[str]:
        return {SPACE.make(ReadyKey(model, 1, name)) for model in self.held[name]} | {SPACE.make(InstanceKey(name))}

    def expire(self, *names: str, relisted: bool = False) -> None:
        gone = {key for name in names for key in self.keys(name)}
        for name in names:
            del self.held[name]
        self.changes({}, gone, relisted=relisted)

    def endpoints(self, model: str) -> set[str]:
        found = self.catalog.models.get(model)
        return {endpoint.instance for endpoint in found.endpoints(1)} if found else set()

    def step(self, action: str, name: str, model: str) -> None:
        self.now += 0.5
        if action == "register":
            self.register(name, model)
        elif action == "expire" and name in self.held:
            self.expire(name)
        elif action == "remove" and model in self.held.get(name, ()):
            self.held[name].discard(model)
            self.changes({}, {SPACE.make(ReadyKey(model, 1, name))})
            assert name not in self.endpoints(model), "an explicit removal acts at once"
        elif action == "wipe":
            self.expire(*self.held, relisted=True)
        elif action == "reconnect":
            self.catalog.apply(Connection(connected=False, detail=""), self.now)
            self.catalog.apply(Connection(connected=True, detail=""), self.now)
        elif action == "check":
            self.catalog.checked({name: (Verdict[model], "")})
        elif action == "wait":
            self.now += float(name)

    def hear(self) -> None:
        self.now += 0.5
        self.changes({SPACE.make(PlaneKey("p")): encode_plane(PlaneRecord(1))}, set())


@given(STEPS)
def test_the_last_endpoint_never_goes_by_expiry_alone(steps: list[tuple[str, str, str]]) -> None:
    history = History()
    for action, name, model in steps:
        before = {one: history.endpoints(one) for one in MODELS}
        dead = {one.instance for one in history.catalog.suspicions(history.now) if one.verdict is Verdict.DEAD}
        back = history.catalog.suspects & history.catalog.instances
        history.step(action, name, model)
        if action == "remove":
            continue
        history.catalog.expire(history.now)
        for one, had in before.items():
            # Taken out by its own monitor's word: it came back and did not register this again.
            if had - dead - back:
                assert history.endpoints(one), (action, one, had)


@given(STEPS)
def test_it_always_ends_once_the_evidence_is_there(steps: list[tuple[str, str, str]]) -> None:
    """Evidence: the registry is connected, a monitor writes, something is heard, and the checks have a verdict."""
    history = History()
    for step in steps:
        history.step(*step)
    history.register("witness", "of another model")
    for name in sorted(history.catalog.suspects):
        history.catalog.checked({name: (Verdict.DEAD, "")})
    history.hear()
    # However late: the times are the longest of the policy.
    history.now += POLICY.bulk_hold + 1
    history.catalog.expire(history.now)
    assert history.catalog.suspects == frozenset()
    for model in MODELS:
        assert history.endpoints(model) == {name for name, held in history.held.items() if model in held}
    assert history.catalog.next_deadline(history.now) is None


def test_the_log_says_it_when_it_begins_and_when_it_ends() -> None:
    history, log = History(), GuardLog()

    def lines() -> list[str]:
        return log.lines(history.catalog.suspicions(history.now), history.catalog.instances, history.now)

    for name in "abc":
        history.register(name, "m")
    assert lines() == []
    history.now = 100.0
    history.expire("a", "b")
    assert lines() == [
        "a, b: lease lost, used on under suspicion (2 instances are, 1 hold their leases; 2 for: lost in bulk)"
    ]
    assert lines() == []
    history.catalog.checked({"a": (Verdict.DEAD, "")})
    assert lines() == ["a: fails its checks; sent nothing new where another instance answers"]
    history.catalog.checked({"a": (Verdict.ANSWERS, "")})
    assert lines() == ["a: answers its checks again"]
    for name in "ab":
        history.now += 1
        history.register(name, "m")
    assert lines() == ["no lease is in doubt any more after 2.0 s: of 2 suspects 2 came back, 0 were given up"]
