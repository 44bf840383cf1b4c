"""The planner on fleets in memory: rollouts, placement, memory, losses, weights and labels, one after the other."""

from __future__ import annotations

from typing import Any

import pytest

from registry.assignments import AssignedModel, Assignment
from registry.keys import AssignmentKey, PlaneKey, PolicyKey
from registry.records import PlaneRecord, encode_plane
from registry.rollouts import Phase
from registry.traffic import Mirror
from tests.support.planned_fleet import PlannedFleet, document


def a_fleet(count: int = 4, versions: tuple[int, ...] = (1,), grace: float = 30.0, **how: Any) -> PlannedFleet:
    fleet = PlannedFleet(grace)
    for number in range(count):
        fleet.add(f"i{number}", {"m": versions}, **how)
    return fleet


def a_running_fleet(count: int = 4, grace: float = 30.0, **spec: Any) -> PlannedFleet:
    fleet = a_fleet(count, grace=grace)
    fleet.apply(document("m", **spec))
    fleet.settle()
    return fleet


def phase(fleet: PlannedFleet) -> Phase:
    return fleet.state.rollouts["m"].phase


def test_a_new_model_is_loaded_on_all_that_match_one_after_the_other() -> None:
    fleet = a_fleet()
    fleet.add("old", {"m": (1,)}, labels={"gpu": "none"})
    for name in ("i0", "i1", "i2", "i3"):
        fleet.servers[name].labels = {"gpu": "a100"}
        fleet.tell(name)
    fleet.apply(document("m", instances={"selector": {"gpu": "a100"}}))
    fleet.step()
    # Somebody is named at once, so that a request is told UNAVAILABLE rather than NOT_FOUND.
    assert fleet.weights("m") == {1: 1}
    for ready in range(4):
        fleet.obey()
        assert len(fleet.loading()) == 1, ready
        assert phase(fleet) is Phase.LOADING
        fleet.finish(*fleet.loading()[0])
        fleet.step()
    fleet.settle()
    assert fleet.assigned("m") == {f"i{number}": (1,) for number in range(4)}
    assert phase(fleet) is Phase.DONE


@pytest.mark.parametrize(("share", "at_once"), [("25%", 1), ("50%", 2), ("100%", 4), ("1%", 1)])
def test_no_more_load_at_a_time_than_allowed(share: str, at_once: int) -> None:
    fleet = a_running_fleet(rollout={"strategy": "rolling", "maxLoading": share})
    fleet.copy_files("m", 2)
    fleet.step()
    fleet.obey()
    assert len(fleet.loading()) == at_once


def test_the_switch_comes_once_when_all_are_ready_and_then_the_old_version_goes() -> None:
    fleet = a_running_fleet()
    fleet.copy_files("m", 2)
    for _ in range(4):
        fleet.step()
        assert fleet.weights("m") == {1: 1}
        assert phase(fleet) is Phase.LOADING
        fleet.obey()
        fleet.finish(*fleet.loading()[0])
        assert all(1 in versions for versions in fleet.assigned("m").values())
    fleet.step()
    assert fleet.weights("m") == {2: 1}
    assert phase(fleet) is Phase.SWITCHING
    # Not in the same revision: nothing is unloaded before the traffic has moved.
    assert all(versions == (1, 2) for versions in fleet.assigned("m").values())
    fleet.step()
    assert all(versions == (2,) for versions in fleet.assigned("m").values())
    assert phase(fleet) is Phase.UNLOADING
    fleet.settle()
    assert phase(fleet) is Phase.DONE
    assert [event.kind for event in fleet.events if event.version == 2] == [
        "RolloutStarted",
        "VersionSwitched",
        "RolloutDone",
    ]


def test_the_events_of_taking_weights_away_say_what_changed() -> None:
    """Back to the latest, which most got anyway, is no switch from that version to itself."""
    fleet = a_running_fleet()
    fleet.copy_files("m", 2)
    fleet.settle()
    for weights, told in (
        ({"1": 10, "2": 90}, [("WeightsChanged", 2, "all again; it was 10 % to version 1, 90 % to version 2")]),
        ({"1": 0, "2": 90}, []),
        ({"1": 90}, [("VersionSwitched", 2, "from version 1")]),
    ):
        fleet.apply(document("m", traffic={"weights": weights}))
        fleet.settle()
        before = len(fleet.events)
        fleet.apply(document("m"))
        fleet.settle()
        assert set(fleet.weights("m")) == {2}
        new = [(one.kind, one.version, one.text) for one in fleet.events[before:] if one.kind[0] in "VW"]
        assert new == told


def test_nothing_is_unloaded_before_every_envoy_knows_of_the_new_traffic() -> None:
    fleet = a_running_fleet()
    fleet.put({PlaneKey("p"): encode_plane(PlaneRecord(fleet.revision))})
    fleet.copy_files("m", 2)
    fleet.settle()
    assert fleet.weights("m") == {2: 1}
    assert phase(fleet) is Phase.UNLOADING
    assert set(fleet.assigned("m").values()) == {(1, 2)}
    # Its control plane is killed, and nobody has the Envoy for a moment.
    fleet.put({PlaneKey("p"): None, PlaneKey("q"): encode_plane(PlaneRecord(fleet.revision, away=1))})
    fleet.settle()
    assert set(fleet.assigned("m").values()) == {(1, 2)}
    fleet.put({PlaneKey("q"): encode_plane(PlaneRecord(fleet.revision, envoys=1))})
    fleet.settle()
    assert set(fleet.assigned("m").values()) == {(2,)}
    assert phase(fleet) is Phase.DONE


def test_a_copy_that_failed_for_good_does_not_hold_up_the_switch_but_half_of_them_do() -> None:
    fleet = a_running_fleet(rollout={"strategy": "rolling", "maxLoading": "100%"})
    fleet.copy_files("m", 2)
    fleet.step()
    fleet.obey()
    for name in ("i0", "i1", "i2"):
        fleet.finish(name, "m", 2, good=False)
    fleet.finish("i3", "m", 2)
    fleet.step()
    assert fleet.weights("m") == {1: 1}
    assert phase(fleet) is Phase.FAILED
    assert "it failed" in fleet.state.rollouts["m"].text
    assert {(event.instance, event.version) for event in fleet.events if event.kind == "LoadFailed"} == {
        (name, 2) for name in ("i0", "i1", "i2")
    }
    # One is mended.
    fleet.servers["i0"].failed.clear()
    fleet.tell("i0")
    fleet.settle()
    assert fleet.weights("m") == {2: 1}


def test_a_switch_at_half_of_the_instances() -> None:
    fleet = a_running_fleet(rollout={"strategy": "rolling", "switchAt": "50%"})
    fleet.copy_files("m", 2, only=["i0", "i1"])
    fleet.settle()
    assert fleet.weights("m") == {2: 1}


def test_files_that_vanish_take_nobody_back() -> None:
    fleet = a_running_fleet()
    fleet.copy_files("m", 2)
    fleet.settle()
    for name, server in fleet.servers.items():
        del server.disk["m"][2]
        fleet.tell(name)
    fleet.step()
    assert fleet.weights("m") == {2: 1}
    assert all(2 in versions for versions in fleet.assigned("m").values())


def test_a_version_that_nobody_can_have_any_more_is_left() -> None:
    fleet = a_running_fleet(1)
    fleet.copy_files("m", 2)
    fleet.settle()
    fleet.lose("i0")
    fleet.step()
    assert fleet.weights("m") == {2: 1}, "it is away, which proves nothing"
    del fleet.servers["i0"].disk["m"][2]
    fleet.come_back("i0")
    fleet.settle()
    assert fleet.weights("m") == {1: 1}


def test_an_operators_order_goes_back_at_once() -> None:
    fleet = a_running_fleet(versions={"specific": [1, 2]})
    fleet.copy_files("m", 2)
    fleet.settle()
    assert fleet.weights("m") == {2: 1}
    fleet.apply(document("m", versions={"specific": [1, 2]}, traffic={"weights": {"1": 100}}))
    fleet.step()
    assert fleet.weights("m") == {1: 100}


def test_weights_wait_for_a_version_that_nobody_has_and_then_come_at_once() -> None:
    fleet = a_running_fleet()
    fleet.copy_files("m", 2)
    fleet.settle()
    fleet.apply(document("m", traffic={"weights": {"1": 10, "2": 90}}))
    fleet.step()
    assert fleet.weights("m") == {2: 1}
    assert "wait" in fleet.state.rollouts["m"].text
    fleet.settle()
    assert fleet.weights("m") == {1: 10, 2: 90}
    assert set(fleet.assigned("m").values()) == {(1, 2)}
    fleet.apply(document("m", traffic={"weights": {"1": 90, "2": 10}}))
    fleet.step()
    assert fleet.weights("m") == {1: 90, 2: 10}


def test_a_label_moves_when_its_version_answers() -> None:
    fleet = a_running_fleet(labels={"stable": 1})
    assert fleet.state.traffic["m"].labels == {"stable": 1}
    assert fleet.state.assignments["i0"].models["m"].labels == {"stable": 1}
    fleet.copy_files("m", 2)
    fleet.copy_files("m", 3)
    fleet.settle()
    assert fleet.weights("m") == {3: 1}
    fleet.apply(document("m", labels={"stable": 2, "new": 3}))
    fleet.step()
    assert fleet.state.traffic["m"].labels == {"stable": 1, "new": 3}
    fleet.settle()
    assert fleet.state.traffic["m"].labels == {"stable": 2, "new": 3}
    assert set(fleet.assigned("m").values()) == {(2, 3)}


def test_a_mirror_waits_for_its_version_and_keeps_it() -> None:
    fleet = a_running_fleet()
    fleet.copy_files("m", 2)
    fleet.settle()
    fleet.apply(document("m", mirror={"version": 1, "percent": 10}))
    fleet.step()
    assert fleet.state.traffic["m"].mirrors == ()
    fleet.settle()
    assert fleet.state.traffic["m"].mirrors == (Mirror(10, "m", 1),)
    assert fleet.weights("m") == {2: 1}
    fleet.apply(document("other", mirror={"model": "m", "version": 1, "percent": 10}, basePath=None))
    fleet.apply(document("m"))
    fleet.settle()
    assert set(fleet.assigned("m").values()) == {(1, 2)}, "another model's requests are copied to it"
    fleet.delete("other")
    fleet.settle()
    assert set(fleet.assigned("m").values()) == {(2,)}


def test_paused_nothing_moves_but_weights_do() -> None:
    fleet = a_running_fleet(versions={"specific": [1, 2]})
    fleet.copy_files("m", 2)
    fleet.settle()
    fleet.copy_files("m", 3)
    fleet.apply(document("m", versions={"latest": 1}, paused=True))
    fleet.settle()
    assert fleet.weights("m") == {2: 1}
    assert set(fleet.assigned("m").values()) == {(1, 2)}
    assert phase(fleet) is Phase.PAUSED
    fleet.apply(document("m", traffic={"weights": {"1": 1, "2": 1}}, paused=True))
    fleet.step()
    assert fleet.weights("m") == {1: 1, 2: 1}


def test_replicas_are_spread_over_the_zones_and_stay_where_they_are() -> None:
    fleet = PlannedFleet()
    for number in range(6):
        fleet.add(f"i{number}", {"m": (1,)}, zone="abc"[number // 2])
    fleet.apply(document("m", instances={"replicas": 3}))
    fleet.settle()
    where = set(fleet.assigned("m"))
    assert {fleet.servers[name].zone for name in where} == {"a", "b", "c"}
    fleet.apply(document("m", instances={"replicas": 4}))
    fleet.settle()
    assert where < set(fleet.assigned("m"))
    fleet.apply(document("m", instances={"replicas": 2}))
    fleet.settle()
    assert len(fleet.assigned("m")) == 2


def test_a_lost_copy_is_placed_again_after_the_grace_and_a_returned_one_costs_nothing() -> None:
    fleet = a_running_fleet(4, instances={"replicas": 2})
    lost, stays = sorted(fleet.assigned("m"))
    fleet.lose(lost)
    fleet.settle()
    assert set(fleet.assigned("m")) == {lost, stays}, "it may be back in a moment"
    fleet.pass_time(31)
    fleet.step()
    assert len(fleet.assigned("m")) == 3, "it is added before anything is removed"
    fleet.settle()
    assert lost not in fleet.assigned("m")
    assert len(fleet.ready("m", 1)) == 2
    before = fleet.assigned("m")
    fleet.come_back(lost)
    fleet.settle()
    assert fleet.assigned("m") == before
    assert [event.instance for event in fleet.events if event.kind == "InstanceLost"] == [lost]


def test_a_drained_instance_is_replaced_after_the_grace_and_keeps_its_copy_until_then() -> None:
    fleet = a_running_fleet(3, instances={"replicas": 2})
    drained = sorted(fleet.assigned("m"))[0]
    fleet.drain(drained, on=True)
    fleet.settle()
    assert drained in fleet.assigned("m")
    fleet.pass_time(31)
    fleet.settle()
    assert drained not in fleet.assigned("m")
    assert len(fleet.assigned("m")) == 2


def test_a_selector_that_fits_nobody_takes_nothing_away() -> None:
    fleet = a_running_fleet(2)
    fleet.apply(document("m", instances={"selector": {"gpu": "typo"}}))
    fleet.settle()
    assert len(fleet.assigned("m")) == 2


def test_a_model_is_placed_where_there_is_room() -> None:
    fleet = PlannedFleet()
    fleet.add("small", {"a": (1,), "b": (1,)}, size=100, memory=150)
    fleet.add("large", {"a": (1,), "b": (1,)}, size=100, memory=500)
    fleet.apply(document("a", instances={"replicas": 1}))
    fleet.apply(document("b", instances={"replicas": 2}))
    fleet.settle()
    assert fleet.assigned("a") == {"large": (1,)}
    assert fleet.assigned("b") == {"large": (1,), "small": (1,)}
    fleet.add("more", {"a": (1,), "b": (1,)}, size=100, memory=150)
    fleet.apply(document("a", instances={"replicas": 2}))
    fleet.settle()
    assert fleet.assigned("a") == {"large": (1,), "more": (1,)}


def test_without_room_for_both_versions_the_instances_change_one_by_one() -> None:
    fleet = PlannedFleet()
    for number in range(4):
        fleet.add(f"i{number}", {"m": (1,)}, memory=150)
    fleet.apply(document("m", rollout={"strategy": "rolling", "maxLoading": "100%"}))
    fleet.settle()
    fleet.copy_files("m", 2)
    switched = False
    for _ in range(100):
        decisions = fleet.step()
        for name, assignment in fleet.state.assignments.items():
            assert fleet.needed(name, assignment) <= 150
        serving = next(iter(fleet.weights("m")))
        switched = switched or serving == 2
        if not switched:
            assert sum(not versions for versions in fleet.assigned("m").values()) <= 1
        fleet.obey()
        assert len(fleet.ready("m", serving)) >= 2, "half of them answer for what traffic names"
        for one in fleet.loading():
            fleet.finish(*one)
        if not decisions and not fleet.loading() and not fleet.state.touched:
            break
    assert fleet.assigned("m") == {f"i{number}": (2,) for number in range(4)}
    assert fleet.weights("m") == {2: 1}


def test_the_only_copy_is_not_taken_to_make_room() -> None:
    fleet = PlannedFleet()
    fleet.add("i0", {"m": (1,)}, memory=150)
    fleet.apply(document("m"))
    fleet.settle()
    fleet.copy_files("m", 2)
    fleet.settle()
    assert fleet.weights("m") == {1: 1}
    assert "no room" in fleet.state.rollouts["m"].text


def test_a_deleted_policy_unloads_what_it_loaded_and_is_routed_as_without_one() -> None:
    fleet = a_running_fleet(2)
    fleet.delete("m")
    fleet.settle()
    assert fleet.assigned("m") == {}
    assert not fleet.state.traffic
    assert not fleet.state.rollouts
    assert not any(server.held for server in fleet.servers.values())


def test_a_policy_that_cannot_be_read_changes_nothing() -> None:
    fleet = a_running_fleet(2)
    fleet.put({PolicyKey("m"): b'{"kind": "nonsense"}'})
    fleet.copy_files("m", 2)
    assert not fleet.step()
    assert len(fleet.assigned("m")) == 2


def test_a_model_without_a_base_path_is_routed_only() -> None:
    fleet = PlannedFleet()
    for name in ("i0", "i1", "i2"):
        fleet.add(name, {}, managed=False)
        fleet.finish(name, "m", 1)
    fleet.apply(document("m", basePath=None))
    fleet.settle()
    assert fleet.weights("m") == {1: 1}
    assert not fleet.state.assignments
    fleet.finish("i0", "m", 2)
    fleet.settle()
    assert fleet.weights("m") == {1: 1}
    fleet.finish("i1", "m", 2)
    fleet.settle()
    assert fleet.weights("m") == {2: 1}, "half of the servers have it, and drop the old one by themselves"


def test_what_is_served_when_a_policy_comes_goes_on() -> None:
    fleet = a_fleet(2, versions=(1, 2, 3))
    for name in fleet.servers:
        fleet.finish(name, "m", 2)
    fleet.apply(document("m"))
    fleet.step()
    assert fleet.weights("m") == {2: 1}
    fleet.settle()
    assert fleet.weights("m") == {3: 1}


def test_a_broken_newest_version_does_not_keep_a_new_instance_from_serving() -> None:
    fleet = a_fleet(1, versions=(1, 2))
    fleet.apply(document("m"))
    fleet.step()
    fleet.obey()
    fleet.finish("i0", "m", 2, good=False)
    fleet.settle()
    assert fleet.weights("m") == {1: 1}


def test_another_leader_goes_on_from_what_is_written() -> None:
    fleet = a_running_fleet()
    fleet.copy_files("m", 2)
    fleet.step()
    fleet.obey()
    fleet.finish(*fleet.loading()[0])
    fleet.step()
    fleet.another_leader()
    assert not fleet.step()
    fleet.settle()
    assert fleet.weights("m") == {2: 1}


def test_an_assignment_to_an_instance_that_is_gone_for_good_is_deleted() -> None:
    fleet = a_running_fleet(2, instances={"replicas": 1})
    (here,) = fleet.assigned("m")
    fleet.lose(here)
    fleet.pass_time(31)
    fleet.settle()
    assert here not in fleet.state.assignments


def test_somebody_elses_nonsense_is_replaced() -> None:
    fleet = a_running_fleet(1)
    before = fleet.state.assignments["i0"]
    fleet.put({AssignmentKey("i0"): b"nonsense"})
    fleet.settle()
    assert fleet.state.assignments["i0"] == Assignment(before.models, before.generation + 1)
    assert before.models == {"m": AssignedModel("/models/m", (1,))}
