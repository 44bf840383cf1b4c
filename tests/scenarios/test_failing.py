"""A model that stops answering while it serves, and answers again, on real processes under real load."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import grpc
import pytest

from registry.keys import ReadyKey
from registry.records import ReadyState
from tests.support import saved_models
from tests.support.load import Load
from tests.support.stack import Stack
from tests.support.switch import Switch
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

REQUEST = saved_models.predict_request("m", [1.0, 2.0, 5.0])
FLAGS = ("--reprove-interval", "0.5", "--reprove-rate", "10", "--probe-deadline", "1.5")


async def until(stack: Stack, **wanted: ReadyState) -> None:
    """The keys are so, and every Envoy has acknowledged it."""

    async def done() -> bool:
        picture = await stack.registry()
        states = {key.instance: record.state for key, record in picture.ready.items()}
        assert states == wanted, (states, picture.instances)
        revision = max(await stack.revisions(*picture.ready))
        return all(plane.converged_revision >= revision for plane in picture.planes.values())

    await eventually(done, f"{wanted}", timeout=60)


def endpoints(stack: Stack) -> set[str]:
    """Of the model, those that Envoy is told to use now."""
    rows = (line.split("::") for line in stack.envoy.admin("/clusters").splitlines())
    flags = {row[1]: row[3] for row in rows if row[0] == "m" and len(row) == 4 and row[2] == "health_flags"}
    used = {port for port, flag in flags.items() if "/eds" not in flag}
    return {name for name, instance in stack.instances.items() if instance.grpc in used}


async def test_what_stops_answering_is_left_out_until_it_answers_again(stack: Stack, tmp_path: Path) -> None:
    """Waits for two instances, then for their keys to follow what their models do: one fails, one hangs, both fail."""
    ready, failing = ReadyState.READY, ReadyState.FAILING
    switches = {name: Switch(tmp_path / f"switch-{name}") for name in "ab"}
    for name, switch in switches.items():
        saved_models.switched(tmp_path / name / "m", switch.file)
        stack.start_instance(name, {"m": tmp_path / name / "m"}, monitor_flags=FLAGS)
    await stack.until_ready(*(ReadyKey("m", 1, name) for name in "ab"))

    async with Load(stack.grpc, REQUEST, clients=4, rest=0.02, timeout=60.0) as load:
        await load.more(40)
        load.assert_all_ok()
        switches["b"].fail()
        await until(stack, a=ready, b=failing)
        assert endpoints(stack) == {"a"}
        await load.more(4)  # those that were under way
        seen = Counter(outcome.code for outcome in load.outcomes)
        assert set(seen) <= {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}, "b's own error, until it was out"
        load.outcomes.clear()
        await load.more(100)
        load.assert_all_ok()
        switches["b"].answer()
        await until(stack, a=ready, b=ready)
        assert endpoints(stack) == {"a", "b"}
        await load.more(50)
        load.assert_all_ok()

        switches["a"].block()
        await until(stack, a=failing, b=ready)
        # The four clients are held by a by now; others are not.
        async with Load(stack.grpc, REQUEST, clients=2) as others:
            await others.more(50)
        others.assert_all_ok()
        switches["a"].answer()
        await until(stack, a=ready, b=ready)
    assert {outcome.code for outcome in load.failures} <= {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN}, (
        "those that were blocked: what the model made of its pipe"
    )

    for switch in switches.values():
        switch.fail()
    await until(stack, a=failing, b=failing)
    assert endpoints(stack) == {"a", "b"}
    async with Load(stack.grpc, REQUEST, clients=2) as load:
        await load.more(20)
    assert {outcome.code for outcome in load.outcomes} == {grpc.StatusCode.NOT_FOUND}, "the servers' own error"
    assert all("switch" in outcome.details for outcome in load.outcomes)
    switches["a"].answer()
    await until(stack, a=ready, b=failing)
    async with Load(stack.grpc, REQUEST, clients=2) as load:
        await load.more(50)
    load.assert_all_ok()
