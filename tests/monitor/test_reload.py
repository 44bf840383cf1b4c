"""The lifecycle command step by step, beside a model of TF Serving's reloads: what is sent, and when."""

from __future__ import annotations

import logging

import pytest

from monitor.reload import Reload
from monitor.told import Told
from tests.monitor.reload_sim import Sim
from tests.monitor.test_reload_histories import Run, config, model


def names(run: Run) -> dict[str, str]:
    return {name: result.name or str(result.progress) for name, result in run.results().items()}


def test_one_model_that_is_refused_does_not_hold_up_the_others() -> None:
    """3.3: the whole request is refused for it."""
    run = Run(sees=True)
    odd = model("b")
    odd.model_platform = "onnx"
    run.machine.want(config(model("a"), odd, model("c")))
    run.until_settled(20)
    assert names(run) == {"a": "done", "b": "ReloadRefused", "c": "done"}
    assert "INVALID_ARGUMENT: Model b requests unsupported platform" in run.results()["b"].text
    asked = run.queued
    run.run(60)
    assert run.queued == asked, "it is not tried again and again"


def test_what_would_be_refused_or_block_for_sure_is_not_sent() -> None:
    run = Run(sees=False)
    none = model("b", versions=(1,))
    none.model_version_policy.specific.versions.pop()
    bare = model("c")
    bare.model_platform = ""
    run.machine.want(config(model("a", path="models/a"), none, bare, model("")))
    run.until_settled(20)
    assert set(names(run).values()) == {"InvalidConfig"}
    assert run.sim.configured == {}
    with pytest.raises(ValueError, match="listed twice"):
        run.machine.want(config(model("a"), model("a")))


def test_a_canary_goes_label_by_label() -> None:
    """3.5: versions, then labels, then moved labels, and only then without the old version."""
    run = Run(sees=True, present=(model("a", versions=(1,)),))
    run.run(2)
    run.machine.want(config(model("a", versions=(1,), labels=(1,))))
    run.until_settled(20)
    assert run.sim.labels == {"a": {"label1": 1}}
    run.sim.disk["/a"] = {1, 3}
    run.machine.want(config(model("a", versions=(3,), labels=(3,))))
    for _ in range(200):
        run.run(0.1)
        label = run.sim.labels["a"]["label1"]
        assert label in run.sim.available("a"), "a label always answers"
    assert (label, run.sim.available("a"), names(run)) == (3, {3}, {"a": "done"})


def test_a_blocked_server_is_asked_ever_more_seldom() -> None:
    """Each request that is given up stays in the server, with a thread of it."""
    run = Run(sees=False, disk={"/a": {1}})
    run.machine.want(config(model("a"), model("b")))
    run.run(30)
    assert names(run) == {"a": "done", "b": "ReloadBlocked"}
    before = len(run.sim.queue)
    run.run(600)
    assert len(run.sim.queue) - before <= 600 / 8, "TIMING.last is 8 s"


def test_a_model_that_nobody_told_of_is_not_unloaded_because_it_is_wanted() -> None:
    """An attached monitor does not know what the server was started with."""
    run = Run(sees=False, present=(model("a"), model("b")))
    run.machine = Reload(Told("i"), {})
    run.run(2)
    run.machine.want(config(model("a"), model("c")))
    for _ in range(100):
        run.run(0.1)
        assert run.sim.available("a") == {2}
    assert names(run) == {"a": "done", "c": "done"}
    assert not run.sim.available("b"), "it is not wanted"


def test_a_broken_model_is_said_to_have_failed_and_its_answer_is_not_believed() -> None:
    """3.3: UNKNOWN, then OK for the same; the configuration is in force both times."""
    run = Run(sees=True)
    run.sim.broken.add(("/b", 2))
    run.machine.want(config(model("a"), model("b")))
    run.until_settled(30)
    assert names(run) == {"a": "done", "b": "LoadFailed"}
    run.machine.want(config(model("a"), model("b"), model("c")))
    run.until_settled(30)
    assert names(run) == {"a": "done", "b": "LoadFailed", "c": "done"}


def test_a_base_path_that_goes_freezes_new_models_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """3.6; and a configured one that never had a version is taken out, which ends the freeze."""
    caplog.set_level(logging.INFO)
    run = Run(sees=True, present=(model("a"),))
    run.run(2)
    del run.sim.disk["/a"]
    run.machine.want(config(model("a"), model("b")))
    run.until_settled(10)
    assert names(run) == {"a": "done", "b": "OtherModelsFrozen"}
    for _ in range(3):
        (condition,) = run.machine.conditions(run.now)
    assert (condition.name, condition.model) == ("OtherModelsFrozen", "b")
    assert "the base path of model a, /a, is missing" in condition.text
    run.sim.disk["/a"] = {2}
    run.until_settled(20)
    assert names(run) == {"a": "done", "b": "done"}
    assert run.machine.conditions(run.now) == ()
    said = [record.getMessage().partition(":")[0] for record in caplog.records if "OtherModelsFrozen" in record.message]
    assert said == ["OtherModelsFrozen on i", "no longer OtherModelsFrozen on i"]


def test_the_model_of_the_server_blocks_as_the_server_does() -> None:
    """The random tests are worth what this is."""
    sim = Sim({}, {"/a": {1}})
    blocked, behind = sim.ask(config(model("a"), model("b"))), sim.ask(config())
    for _ in range(50):
        sim.step()
    assert blocked.answer is behind.answer is None
    assert sim.statuses("a") == (), "frozen"
    sim.disk["/b"] = {1}
    for _ in range(50):
        sim.step()
    assert (blocked.answer, behind.answer) == (("OK", ""), ("OK", ""))
    assert [one.state for one in sim.statuses("b")] == ["END"]


def test_a_connection_that_broke_is_no_answer() -> None:
    run = Run(sees=True)
    run.machine.want(config(model("a")))
    run.run(0.2)
    assert run.call is not None
    run.answer("UNKNOWN", "Stream removed")
    run.run(0.1)
    assert names(run) == {"a": "ReloadBlocked"}, "it may still be carried out, and is"
    run.until_settled(20)
    assert names(run) == {"a": "done"}


def test_what_a_restart_brings_back_goes_again_and_labels_come_again() -> None:
    run = Run(sees=True, present=(model("a"),))
    run.run(2)
    run.machine.want(config())
    run.until_settled(20)
    assert not run.sim.available("a")
    run.restart()
    run.until_settled(20)
    assert not run.sim.available("a")
    run.machine.want(config(model("a", labels=(2,))))
    run.until_settled(20)
    run.restart()
    assert run.sim.labels == {}
    run.until_settled(20)
    assert run.sim.labels == {"a": {"label0": 2}}
