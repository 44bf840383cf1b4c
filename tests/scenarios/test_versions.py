"""A new version folder appears under load: nobody fails, and who has seen the new answer never sees the old again."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
import pytest

from registry.keys import ReadyKey
from registry.records import Proof, ReadyState, ServableState
from tests.support import saved_models
from tests.support.load import Load
from tests.support.stack import Stack, rest
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

REQUEST = saved_models.predict_request("m", [2.0])


def answer(version: int) -> float:
    """What version N says to 2.0: N + 1, so that the value proves who has answered."""
    return 1.0 + version


async def start(stack: Stack, base: Path, names: str, *, versions: int = 2) -> None:
    saved_models.half_plus_two(base, 1, b=1.0)
    for name in names:
        stack.start_instance(name, {"m": base}, versions=versions)
    await stack.until_ready(*(ReadyKey("m", 1, name) for name in names))


@pytest.mark.parametrize("instances", ["ab", "abc"])
async def test_every_new_version_is_a_clean_switch(stack: Stack, tmp_path: Path, instances: str) -> None:
    """Four versions in a row under load. Waits, for each, until all answers come from it."""
    base = tmp_path / "models" / "m"
    await start(stack, base, instances)
    async with Load(stack.grpc, REQUEST, clients=6, rest=0.002) as load:
        for version in (2, 3, 4):
            await load.more(100)
            saved_models.half_plus_two(base, version, b=float(version))
            await eventually(lambda v=version: load.outcomes[-1].version == v, f"version {version} to answer")
            await stack.until_ready(*(ReadyKey("m", version, name) for name in instances))
        await load.more(100)
    load.assert_all_ok(at_least=400)
    load.assert_versions_never_go_back()
    assert all(outcome.values == (answer(outcome.version),) for outcome in load.outcomes)
    assert {outcome.version for outcome in load.outcomes} == {1, 2, 3, 4}


@pytest.mark.parametrize("instances", ["a", "ab"])
async def test_with_one_version_at_a_time_nobody_fails_either(stack: Stack, tmp_path: Path, instances: str) -> None:
    """TF Serving's default policy swaps by itself. Waits until every instance has registered each new version."""
    base = tmp_path / "models" / "m"
    await start(stack, base, instances, versions=1)
    async with Load(stack.grpc, REQUEST, clients=6, rest=0.002) as load:
        for version in (2, 3):
            await load.more(100)
            saved_models.half_plus_two(base, version, b=float(version))
            await stack.until_ready(*(ReadyKey("m", version, name) for name in instances))
        await load.more(100)
    load.assert_all_ok(at_least=300)
    assert load.outcomes[-1].version == 3
    assert all(outcome.values == (answer(outcome.version),) for outcome in load.outcomes)


BROKEN = {
    "without its variables": (saved_models.without_variables, ServableState.AVAILABLE, "Could not find variable"),
    "unreadable": (saved_models.corrupt, ServableState.END, "Can't parse"),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_new_version_is_never_asked(stack: Stack, tmp_path: Path, kind: str) -> None:
    """TF Serving calls the first AVAILABLE. Waits until the registry says of both instances why it is not served."""
    write, state, why = BROKEN[kind]
    base = tmp_path / "models" / "m"
    saved_models.half_plus_two(base, 1, b=1.0)
    for name in "ab":
        stack.start_instance(name, {"m": base}, server_flags=("--max_num_load_retries=0",))
    await stack.until_ready(*(ReadyKey("m", 1, name) for name in "ab"))
    async with Load(stack.grpc, REQUEST, clients=4) as load:
        await load.more(50)
        write(base, 2)
        await told(stack, 2, state, why)
        await load.more(100)
    load.assert_all_ok(at_least=150)
    assert {outcome.version for outcome in load.outcomes} == {1}


async def told(stack: Stack, version: int, state: ServableState, why: str) -> None:
    async def said() -> bool:
        picture = await stack.registry()
        for name in "ab":
            rows = [row for row in picture.instances[name].servables if row.version == version]
            assert rows, picture.instances[name]
            assert rows[0].state is state
            assert why in rows[0].error + rows[0].proof_detail
            assert rows[0].proof is not Proof.PROVED
            ready = picture.ready.get(ReadyKey("m", version, name))
            assert ready is None or ready.state is ReadyState.LOADING
        return True

    await eventually(said, f"both instances to say why version {version} is not served")


async def test_a_model_that_loads_gets_no_request_until_it_answers(stack: Stack, tmp_path: Path) -> None:
    """Loading takes four seconds on the second instance. Waits until the registry has announced it, asks the model all
    the while, and waits until the instance is ready."""
    base, slow = tmp_path / "models" / "m", tmp_path / "slow" / "m"
    await start(stack, base, "a")
    saved_models.slow_to_load(slow, 1, seconds=4.0, b=1.0)
    stack.start_instance("b", {"m": slow})
    async with Load(stack.grpc, REQUEST, clients=4) as load:
        await stack.until_ready(ReadyKey("m", 1, "b"))
        await load.more(100)
    load.assert_all_ok(at_least=200)
    stack.instances["b"].monitor.send(signal.SIGTERM)


async def test_a_model_that_nobody_answers_for_is_unavailable_not_unknown(stack: Stack, tmp_path: Path) -> None:
    """Its only version lacks its variables. Waits until Envoy knows the model, and asks it over both protocols."""
    base = tmp_path / "models" / "bare"
    saved_models.without_variables(base)
    stack.start_instance("a", {"bare": base})

    async def known() -> bool:
        record = (await stack.registry()).ready.get(ReadyKey("bare", 1, "a"))
        return record is not None and record.state is ReadyState.LOADING and "bare@1" in stack.envoy.admin("/clusters")

    await eventually(known, "the model to be known", 60)
    await stack.envoy.ready()
    async with Load(stack.grpc, saved_models.predict_request("bare", [1.0]), clients=1) as load:
        await load.more(5)
    assert {outcome.code for outcome in load.outcomes} == {grpc.StatusCode.UNAVAILABLE}
    assert "bare" in load.outcomes[0].details
    code, document = rest(stack, "/v1/models/bare:predict", {"instances": [1.0]})
    assert code == 503
    assert "bare" in document["error"]
