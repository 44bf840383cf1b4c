"""Who is away: the roll call of several replicas against one registry, without I/O."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from control_plane.roll_call import RollCall
from registry.follow import Changes, Snapshot
from registry.keys import Keyspace, NodesKey, PlaneKey
from registry.records import PlaneRecord, encode_plane, encode_roll

SPACE = Keyspace()
GRACE, OVERLAP = 30.0, 40.0


class Fleet:
    """Replicas by name, and what etcd holds of them. `connect` and `cut` are what happens to an Envoy's connection."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.etcd: dict[str, bytes] = {}
        self.calls: dict[str, RollCall] = {}

    def start(self, name: str, converged: int = 5) -> RollCall:
        """It reads the registry, and writes its record and its list. It may have a predecessor."""
        self.calls[name] = call = RollCall(GRACE, overlap=OVERLAP, replica=name)
        call.apply(Snapshot(1, MappingProxyType(dict(self.etcd))), self.now)
        self.record(name, converged)
        self.list(name)
        return call

    def record(self, name: str, converged: int) -> None:
        self.change({SPACE.make(PlaneKey(name)): encode_plane(PlaneRecord(converged, xds=f"{name}:18000"))})

    def list(self, *names: str) -> None:
        """These replicas write their lists (all: no name given), if they are news."""
        for name in names or tuple(self.calls):
            key, value = SPACE.make(NodesKey(name)), encode_roll(self.calls[name].roll())
            if self.etcd.get(key) != value:
                self.change({key: value})

    def change(self, puts: dict[str, bytes], deletes: frozenset[str] = frozenset(), *, relisted: bool = False) -> None:
        self.etcd = {key: value for key, value in (self.etcd | puts).items() if key not in deletes}
        for call in self.calls.values():
            call.apply(Changes(2, puts, deletes, relisted), self.now)

    def kill(self, name: str) -> None:
        del self.calls[name]

    def lease_ends(self, name: str) -> None:
        """Of its record; its list stays longer."""
        self.change({}, frozenset({SPACE.make(PlaneKey(name))}))

    def forget(self, name: str) -> None:
        self.change({}, frozenset({SPACE.make(NodesKey(name))}))

    def connect(self, name: str, node: str, peer: str = "p1") -> None:
        self.calls[name].arrived(node, peer, self.now)
        self.list()

    def cut(self, name: str, node: str, peer: str = "p1", revision: int = 5) -> None:
        self.calls[name].lost(node, peer, revision, self.now)
        self.list()

    def away(self, name: str) -> dict[str, int]:
        self.calls[name].expire(self.now)
        return {one.node: one.revision for one in self.calls[name].away}


def fleet(*names: str) -> Fleet:
    made = Fleet()
    for name in names:
        made.start(name)
    return made


def test_a_fleet_without_envoys_waits_for_nobody() -> None:
    two = fleet("a", "b")
    two.kill("b")
    two.lease_ends("b")
    two.start("b")
    assert [call.away for call in two.calls.values()] == [(), ()]
    assert two.calls["a"].next_deadline() is None


def test_where_an_envoy_is_served_is_known_while_one_replica_has_it_and_no_more() -> None:
    three = fleet("a", "b", "c")
    three.connect("a", "envoy")
    assert [three.calls[name].elsewhere("envoy") for name in "abc"] == ["", "a:18000", "a:18000"]
    three.connect("b", "envoy")
    assert [three.calls[name].elsewhere("envoy") for name in "abc"] == ["b:18000", "a:18000", ""]
    three.cut("a", "envoy")
    assert three.calls["c"].elsewhere("envoy") == "b:18000"
    three.kill("b")
    three.lease_ends("b")
    assert three.calls["c"].elsewhere("envoy") == three.calls["c"].elsewhere("nobody") == ""
    three.change({SPACE.make(PlaneKey("b")): encode_plane(PlaneRecord(5))})
    assert three.calls["c"].elsewhere("envoy") == "", "a replica that is older than its address"


def test_who_is_lost_is_waited_for_by_the_replica_that_had_it_until_it_is_back() -> None:
    two = fleet("a", "b")
    two.connect("a", "envoy")
    two.cut("a", "envoy", revision=7)
    assert (two.away("a"), two.away("b")) == ({"envoy": 7}, {})
    two.now += 20
    two.connect("a", "envoy", "p2")
    assert two.away("a") == {}


def test_or_is_with_another_replica() -> None:
    two = fleet("a", "b")
    two.connect("a", "envoy")
    two.cut("a", "envoy")
    two.calls["b"].arrived("envoy", "p2", two.now)
    assert two.away("a"), "the other one has not said so yet"
    two.list()
    assert two.away("a") == {}


def test_or_its_grace_is_over() -> None:
    one = fleet("a")
    one.connect("a", "envoy")
    one.cut("a", "envoy")
    one.now += GRACE - 0.1
    assert one.calls["a"].expire(one.now) == ()
    deadline = one.calls["a"].next_deadline()
    assert deadline is not None
    assert one.calls["a"].expire(deadline) == ("envoy",)
    assert one.calls["a"].next_deadline() is None


def test_all_others_answer_for_the_envoys_of_a_replica_that_vanished() -> None:
    three = fleet("a", "b", "c")
    three.connect("a", "one")
    three.connect("a", "two")
    three.cut("a", "two", revision=3)
    three.record("a", 4)
    three.kill("a")
    assert three.away("b") == {}, "its record speaks for it as long as its lease goes on"
    three.lease_ends("a")
    assert three.away("b") == three.away("c") == {"one": 4, "two": 4}
    three.connect("b", "one", "p2")
    assert three.away("b") == three.away("c") == {"two": 4}
    three.now += GRACE
    assert three.away("b") == three.away("c") == {}


def test_who_was_back_before_the_lease_of_its_killed_control_plane_ended_is_not_waited_for() -> None:
    two = fleet("a", "b")
    two.connect("a", "envoy")
    two.now += 100
    two.kill("a")
    two.connect("b", "envoy", "p2")
    two.now += 10
    two.lease_ends("a")
    assert two.away("b") == {}


def test_but_one_that_was_there_all_the_time_is_another_one_of_its_name() -> None:
    two = fleet("a", "b")
    two.connect("b", "envoy")
    two.now += 1
    two.connect("a", "envoy", "p2")
    two.now += 1
    two.kill("a")
    two.lease_ends("a")
    assert two.away("b") == {"envoy": 5}


def test_the_old_connection_of_an_envoy_whose_network_was_cut_is_not_missed() -> None:
    two = fleet("a", "b")
    two.connect("a", "envoy")
    two.now += 7
    two.connect("a", "envoy", "p2")
    two.now += 6
    two.cut("a", "envoy")
    assert two.away("a") == {}
    two.cut("a", "envoy", "p2")
    assert two.away("a") == {"envoy": 5}, "one arrival is one return"


def test_one_that_looks_in_elsewhere_and_comes_back_at_once() -> None:
    """The list of the replica that has it is written after all that."""
    two = fleet("a", "b")
    two.connect("a", "envoy")
    two.calls["a"].lost("envoy", "p1", 5, two.now)
    two.now += 0.1
    two.calls["b"].arrived("envoy", "p2", two.now)
    two.list("b")
    two.now += 0.1
    two.calls["b"].lost("envoy", "p2", 5, two.now)
    two.calls["a"].arrived("envoy", "p3", two.now)
    two.list()
    assert (two.away("a"), two.away("b")) == ({}, {})


def test_a_replica_that_starts_waits_for_the_envoys_of_its_predecessor() -> None:
    one = fleet("a")
    one.connect("a", "one")
    one.connect("a", "two")
    one.cut("a", "two")
    one.kill("a")
    one.start("a")
    assert one.away("a") == {"one": 0, "two": 0}
    assert one.calls["a"].roll().away == ("one", "two"), "nobody else would know"
    one.connect("a", "one", "p2")
    assert one.away("a") == {"two": 0}


def test_and_for_those_of_all_when_all_were_gone_for_longer_than_a_lease() -> None:
    two = fleet("a", "b")
    two.connect("a", "one")
    two.connect("b", "two")
    two.kill("a")
    two.kill("b")
    two.lease_ends("a")
    two.lease_ends("b")
    two.start("c")
    assert two.away("c") == {"one": 0, "two": 0}
    two.start("a")
    assert two.away("c") == {"two": 0}, "the new a answers for what a had"
    assert two.away("a") == {"one": 0, "two": 0}
    two.connect("a", "two", "p2")
    assert (two.away("a"), two.away("c")) == ({"one": 0}, {})


def test_a_predecessor_by_another_name_whose_lease_goes_on() -> None:
    """What a replica named HOST-PID leaves behind when it is killed and started again."""
    two = fleet("host-1", "b")
    two.connect("host-1", "one")
    two.connect("host-1", "two")
    two.kill("host-1")
    two.now += 1
    two.connect("b", "one", "p2")
    two.start("host-2")
    two.now += 5
    two.lease_ends("host-1")
    assert two.away("b") == two.away("host-2") == {"two": 5}


def test_what_several_that_are_gone_had_one_after_the_other_is_one_envoy() -> None:
    three = fleet("a", "b", "c")
    three.connect("a", "envoy")
    three.connect("c", "other")
    three.kill("a")
    three.now += 1
    three.connect("b", "envoy", "p2")
    three.kill("b")
    three.lease_ends("b")
    three.lease_ends("a")
    assert [away.node for away in three.calls["c"].away] == ["envoy"]
    three.kill("c")
    three.lease_ends("c")
    three.start("b")
    assert sorted(away.node for away in three.calls["b"].away) == ["envoy", "other"]


def test_of_several_with_one_name_that_one_replica_had_each_is_waited_for_by_its_successor() -> None:
    two = fleet("a", "b")
    for peer in ("p1", "p2", "p3"):
        two.connect("a", "envoy", peer)
        two.connect("b", "envoy", peer)
    two.kill("a")
    two.kill("b")
    two.lease_ends("a")
    two.start("b")
    assert [away.node for away in two.calls["b"].away] == ["envoy"] * 3


def test_a_wiped_etcd_makes_all_records_vanish_and_nobody_waits_for_long() -> None:
    two = fleet("a", "b")
    two.connect("a", "one")
    two.connect("b", "two")
    held = dict(two.etcd)
    two.change({}, frozenset(held), relisted=True)
    assert two.away("a") == {"two": 0}, "revisions count from the beginning again"
    assert two.away("b") == {"one": 0}
    two.change({key: value for key, value in held.items() if not key.endswith("/nodes")})
    two.change({key: value for key, value in held.items() if key.endswith("/nodes")})
    assert (two.away("a"), two.away("b")) == ({}, {})


def test_what_is_unreadable_is_no_reason_to_forget_anybody() -> None:
    two = fleet("a", "b")
    two.connect("a", "envoy")
    two.change({SPACE.make(PlaneKey("a")): b"{"})
    two.lease_ends("a")
    assert two.away("b") == {"envoy": 0}
    two.change({SPACE.make(NodesKey("c")): b"{", SPACE.make(PlaneKey("c")): encode_plane(PlaneRecord(5))})
    two.lease_ends("c")
    two.forget("c")
    assert two.away("b") == {"envoy": 0}


@given(st.lists(st.sampled_from(["x", "y"]), max_size=6), st.integers(0, 6))
def test_of_several_with_one_name_each_is_waited_for(nodes: list[str], lost: int) -> None:
    one = fleet("a")
    for number, node in enumerate(nodes):
        one.now += 1
        one.connect("a", node, f"p{number}")
    one.now += OVERLAP + 1
    for number, node in list(enumerate(nodes))[:lost]:
        one.cut("a", node, f"p{number}")
    assert Counter(away.node for away in one.calls["a"].away) == Counter(nodes[:lost])


class Histories(RuleBasedStateMachine):
    """Envoys with ids of their own, that come and go; replicas that are killed, forgotten and started again."""

    NAMES = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.fleet = fleet(*self.NAMES)
        self.where: dict[str, str | None] = {}
        self.since: dict[str, float] = {}
        self.peers = 0

    @rule(node=st.sampled_from(["e1", "e2", "e3"]), name=st.sampled_from(NAMES))
    def connect(self, node: str, name: str) -> None:
        if name in self.fleet.calls and self.where.get(node) is None:
            self.peers += 1
            self.fleet.now += 0.01
            self.where[node] = f"{name} p{self.peers}"
            self.fleet.connect(name, node, f"p{self.peers}")

    @rule(node=st.sampled_from(["e1", "e2", "e3"]))
    def cut(self, node: str) -> None:
        if where := self.where.get(node):
            self.where[node], self.since[node] = None, self.fleet.now
            self.fleet.cut(where.split()[0], node, where.split()[1])

    @precondition(lambda self: self.fleet.calls)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.fleet.calls)))
        self.fleet.kill(name)
        for node, where in self.where.items():
            if where and where.split()[0] == name:
                self.where[node], self.since[node] = None, self.fleet.now

    @rule(name=st.sampled_from(NAMES))
    def lease_ends(self, name: str) -> None:
        if name not in self.fleet.calls:
            self.fleet.lease_ends(name)

    @rule(name=st.sampled_from(NAMES))
    def restart(self, name: str) -> None:
        if name not in self.fleet.calls:
            self.fleet.now += 0.01
            self.fleet.start(name)
            self.fleet.list()

    @rule(seconds=st.sampled_from([1.0, 9.0]))
    def later(self, seconds: float) -> None:
        self.fleet.now += seconds
        for call in self.fleet.calls.values():
            call.expire(self.fleet.now)
        self.fleet.list()

    def _speaks(self, node: str) -> bool:
        """Whether a record is there that holds what this Envoy has not acknowledged back: a dead replica's, which had
        it or waits for it, or a living one's that waits for it."""
        for name in self.NAMES:
            key, listed = SPACE.make(PlaneKey(name)), self.fleet.etcd.get(SPACE.make(NodesKey(name)), b"")
            if key in self.fleet.etcd and name not in self.fleet.calls and f'"{node}"'.encode() in listed:
                return True
        return any(node in (one.node for one in call.away) for call in self.fleet.calls.values())

    @invariant()
    def an_envoy_that_is_away_is_waited_for(self) -> None:
        for node, where in self.where.items():
            if where is None and self.fleet.calls and self.fleet.now - self.since[node] < GRACE:
                assert self._speaks(node), f"{node} is in nobody's account"

    @invariant()
    def one_that_is_connected_is_not(self) -> None:
        for name, call in self.fleet.calls.items():
            for away in call.away:
                assert not self.where.get(away.node), f"{name} waits for {away}, who is with {self.where[away.node]}"


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
