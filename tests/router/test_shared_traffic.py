"""What policies do to requests: shares, keys that stick, labels, copies, limits. Real Envoy, real gRPC and HTTP."""

from __future__ import annotations

import asyncio
import collections
import json
import math
import random
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import yaml
from google.protobuf.message import DecodeError

from control_plane.envoy_files import render_bootstrap
from control_plane.model import Handling, Model, Traffic
from model_server.messages import get_model_status_pb2
from registry.traffic import Mirror
from tests.support.echo import EchoRest, EchoServer
from tests.support.fleet import PREDICT, STATUS, Fleet, model
from tests.support.requests import field, request, spec, varint
from tests.support.waiting import eventually

OK, UNAVAILABLE, NOT_FOUND = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND
EXHAUSTED, DEADLINE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED
MULTI_INFERENCE = "/tensorflow.serving.PredictionService/MultiInference"
CLASSIFY = "/tensorflow.serving.PredictionService/Classify"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"


def told(version: int, sent: bytes = request("m")) -> bytes:
    """What a server gets of a request that names no version and has no payload."""
    return sent + field(1, field(2, b"\x08" + bytes([version])))


def shared(base: Model, weights: Mapping[int, int], **more: Any) -> Model:
    traffic = Traffic(tuple(sorted(weights.items())), **more)
    return replace(base, pinned=len(base.versions) > 1 and bool(weights), traffic=traffic)


@pytest_asyncio.fixture
async def other() -> AsyncIterator[EchoServer]:
    async with EchoServer("b") as server:
        yield server


@pytest_asyncio.fixture
async def rest() -> AsyncIterator[EchoRest]:
    async with EchoRest("r") as server:
        yield server


async def spread(fleet: Fleet, number: int) -> dict[bytes, int]:
    """What arrived of so many requests that name no version."""
    answers = []
    for _ in range(number // 50):
        answers += await asyncio.gather(*(fleet.call(request("m")) for _ in range(50)))
    assert {answer.code for answer in answers} == {OK}, answers
    return collections.Counter(answer.message for answer in answers)


def deviations(seen: int, number: int, share: float) -> float:
    return abs(seen - number * share) / math.sqrt(number * share * (1 - share))


async def test_versions_are_drawn_by_their_weights_also_after_a_change(fleet: Fleet, echo: EchoServer) -> None:
    """Five standard deviations: once in two million runs. Waits for the changed weights to be in use."""
    base = model("m", {3: [echo.port], 4: [echo.port], 5: [echo.port]})
    await fleet.start([shared(base, {3: 90, 4: 10})])
    seen = await spread(fleet, 2000)
    assert seen.keys() == {told(3), told(4)}
    assert deviations(seen[told(4)], 2000, 0.1) < 5, seen
    fleet.publish([shared(base, {4: 20, 5: 60})])

    async def changed() -> bool:
        return (await fleet.call(request("m"))).message == told(5)

    await eventually(changed, "version 5 to be drawn", 10)
    seen = await spread(fleet, 400)
    assert seen.keys() == {told(4), told(5)}
    assert deviations(seen[told(4)], 400, 0.25) < 5, seen


async def test_routers_do_not_draw_in_lockstep(fleet: Fleet, echo: EchoServer, rest: EchoRest) -> None:
    """The two listeners' routers have a Lua state each, as workers have."""
    ports = {3: [echo.port], 4: [echo.port]}
    await fleet.start([shared(model("m", ports, rest=rest.port), {3: 1, 4: 1})])
    by_grpc = [(await fleet.call(request("m"))).message == told(4) for _ in range(64)]
    for _ in range(64):
        await asyncio.to_thread(fleet.rest, "/v1/models/m:predict", b"{}")
    by_rest = [path == "/v1/models/m/versions/4:predict" for path in rest.paths]
    assert set(rest.paths) == {"/v1/models/m/versions/3:predict", "/v1/models/m/versions/4:predict"}
    assert by_grpc != by_rest


async def test_a_key_sticks_to_its_version_and_only_the_needed_share_moves(fleet: Fleet, echo: EchoServer) -> None:
    """Waits for the changed weights to be in use."""
    base = model("m", {3: [echo.port], 4: [echo.port]})
    users = [f"user-{number}" for number in range(400)]

    async def versions() -> dict[str, bytes]:
        answers = await asyncio.gather(*(fleet.call(request("m"), x_user_id=user) for user in users))
        return {user: answer.message for user, answer in zip(users, answers, strict=True)}

    await fleet.start([shared(base, {3: 90, 4: 10}, sticky_by="x-user-id")])
    before = await versions()
    assert deviations(sum(version == told(4) for version in before.values()), 400, 0.1) < 5
    assert await versions() == before
    after: dict[str, bytes] = before

    async def changed() -> bool:
        nonlocal after
        after = await versions()
        return after != before

    fleet.publish([shared(base, {3: 80, 4: 20}, sticky_by="x-user-id")])
    await eventually(changed, "the new weights", 10)
    assert deviations(sum(version == told(4) for version in after.values()), 400, 0.2) < 5
    assert all(after[user] == told(4) for user in users if before[user] == told(4)), "nobody moves back"
    assert len(await spread(fleet, 100)) == 2, "without the key it is chance"


async def test_labels_of_the_policy_are_resolved_and_others_are_the_servers(fleet: Fleet, echo: EchoServer) -> None:
    base = model("m", {3: [echo.port], 4: [echo.port]})
    labels = (("canary", 4), ("gone", 9), ("größte Zahl", 4))
    await fleet.start([shared(base, {3: 1}, labels=labels)])
    for label in ("canary", "größte Zahl"):
        sent = request("m", label=label)
        assert (await fleet.call(sent)).message == told(4, sent)
        assert (await fleet.call(sent, x_model_name="m")).message == told(4, sent)
    sent = request("m", label="of-the-server")
    assert (await fleet.call(sent)).message == sent
    answer = await fleet.call(request("m", label="gone"))
    assert (answer.code, answer.details) == (NOT_FOUND, "Servable not found for request: Specific(m, 9)")
    for method in (CLASSIFY, METADATA):
        assert (await fleet.call(request("m"), method)).message == told(3)
    assert (await fleet.call(field(1, request("m")), MULTI_INFERENCE)).message == field(1, told(3))
    assert (await fleet.call(request("m"), STATUS)).message == request("m"), "it is for all versions"
    sent = request("m", version=4)
    assert (await fleet.call(sent)).message == sent, "a client's own choice of a version is free"
    answer = await fleet.call(request("m"), x_model_name="m", x_model_version="4")
    assert answer.message == told(4)


async def test_without_an_able_version_nobody_answers(fleet: Fleet, echo: EchoServer) -> None:
    await fleet.start([shared(model("m", {3: [], 4: [echo.port]}, served=3), {})])
    answer = await fleet.call(request("m"))
    assert (answer.code, answer.details) == (UNAVAILABLE, "No instance is ready for model m")
    assert not echo.seen


async def test_copies_go_to_the_other_version_and_model(fleet: Fleet, echo: EchoServer, other: EchoServer) -> None:
    """Waits for the copies."""
    base = shared(model("m", {3: [echo.port], 4: [other.port]}, 3), {3: 1}, mirrors=(Mirror(100, "m", 4),))
    away = shared(model("q/ü", {1: [echo.port]}), {1: 1}, mirrors=(Mirror(100, "m", 4),))
    await fleet.start([base, away])
    sent = request("m", signature="s", payload=b"x" * 300_000)
    assert (await fleet.call(sent)).identity == "a"
    await eventually(lambda: other.seen, "a copy", 5)
    pinned = request("m", signature="s") + field(1, field(2, b"\x08\x03")) + field(2, b"x" * 300_000)
    assert echo.seen == [(PREDICT, pinned)]
    assert other.seen == [(PREDICT, pinned + field(1, spec("m", 4)))]
    other.seen.clear()
    other.fail_with = grpc.StatusCode.INTERNAL
    assert (await fleet.call(request("q/ü"))).message == request("q/ü")
    await eventually(lambda: other.seen, "a copy for another model", 5)
    assert other.seen == [(PREDICT, request("q/ü") + field(1, spec("m", 4)))]
    other.seen.clear()
    for body, method in ((request("m"), METADATA), (request("m", version=3), PREDICT), (request("m"), STATUS)):
        assert (await fleet.call(body, method)).identity == "a"
    assert (await fleet.call(request("m", payload=bytes(9 << 20)))).identity == "a"
    assert (await fleet.call(request("m"), CLASSIFY)).identity == "a"
    await eventually(lambda: other.seen, "the copy that is due", 5)
    assert [method for method, _ in other.seen] == [CLASSIFY], "no metadata, no client's own version, nothing large"


async def test_a_slow_shadow_costs_a_bounded_number_of_copies(
    fleet: Fleet, echo: EchoServer, other: EchoServer
) -> None:
    """Waits until all copies that may be in flight are."""
    other.delay = 60
    await fleet.start([shared(model("m", {3: [echo.port], 4: [other.port]}), {3: 1}, mirrors=(Mirror(100, "m", 4),))])
    began = time.monotonic()
    assert (await spread(fleet, 300)).keys() == {told(3)}
    assert time.monotonic() - began < 30
    await eventually(lambda: other.active >= 64, "the copies", 5)
    assert (other.active, len(other.seen)) == (64, 64)
    stats = fleet.envoy.stats("@shadow")
    dropped = [stats[f"cluster.@shadow.upstream_rq_{kind}_overflow"] for kind in ("active", "pending")]
    assert sum(dropped) == 236
    other.delay = 0


async def test_copies_over_rest(fleet: Fleet, echo: EchoServer, rest: EchoRest) -> None:
    """Waits for the copies."""
    base = model("m", {3: [echo.port], 4: [echo.port]}, rest=rest.port)
    labels = (("stable", 3),)
    await fleet.start([shared(base, {3: 1}, mirrors=(Mirror(100, "m", 4),), labels=labels)])
    for path in ("/v1/models/m:predict?a=b", "/v1/models/m/labels/stable:classify"):
        rest.paths.clear()
        status, body, _ = await asyncio.to_thread(fleet.rest, path, b"{}")
        verb = path.rpartition(":")[2]
        assert (status, "/versions/3:" in body) == (200, True)
        await eventually(lambda: len(rest.paths) == 2, "the copy", 5)
        assert set(rest.paths) == {f"/v1/models/m/versions/3:{verb}", f"/v1/models/m/versions/4:{verb}"}
    status, body, _ = await asyncio.to_thread(fleet.rest, "/v1/models/m/labels/unknown:predict", b"{}")
    assert "/labels/unknown:predict" in body


async def test_an_envoy_with_an_older_bootstrap_copies_nothing(
    fleet: Fleet, echo: EchoServer, other: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = yaml.safe_load(render_bootstrap(["127.0.0.1:1"]))
    del old["bootstrap_extensions"], old["static_resources"]["listeners"]
    old["static_resources"]["clusters"] = [one for one in old["static_resources"]["clusters"] if one["name"] == "@xds"]

    def render(_: object, admin: str) -> str:
        host, _, port = admin.partition(":")
        old["admin"]["address"]["socket_address"] = {"address": host, "port_value": int(port)}
        return json.dumps(old)

    monkeypatch.setattr("tests.support.fleet.render_bootstrap", render)
    traffic = {"mirrors": (Mirror(100, "m", 4),), "compare": 1.0, "between": (3, 4)}
    await fleet.start([shared(model("m", {3: [echo.port], 4: [other.port]}), {3: 1, 4: 0} | {4: 1}, **traffic)])
    assert (await spread(fleet, 100)).keys() == {told(3), told(4)}
    assert len(other.seen) + len(echo.seen) == 100


async def test_what_is_compared_and_observed(fleet: Fleet, echo: EchoServer) -> None:
    """The comparer stands where the control plane does. Waits for what it is sent."""
    async with EchoServer("plane") as plane:
        fleet.plane = f"127.0.0.1:{plane.port}"
        base = model("m", {3: [echo.port], 4: [echo.port]})
        await fleet.start([shared(base, {3: 1}, compare=1.0, between=(3, 4), observe=0.5)])
        await spread(fleet, 100)
        await eventually(lambda: PREDICT in {method for method, _ in plane.seen}, "a copy", 5)
        assert {body for method, body in plane.seen if method == PREDICT} == {told(3)}
        headers = [one for one in plane.metadata if "x-modelplane-compare" in one]
        assert {one["x-modelplane-compare"] for one in headers} == {"m 3 4"}
        observed = sum(one.get("x-modelplane-observe") == "1" for one in echo.metadata)
        assert deviations(observed, 100, 0.5) < 5


async def test_limits_of_a_policy(fleet: Fleet, echo: EchoServer, rest: EchoRest) -> None:
    handling = Handling(timeout=0.2, retries=0, max_request_bytes=100)
    base = replace(model("m", {3: [echo.port]}, rest=rest.port), handling=handling)
    await fleet.start([base])
    body = request("m", payload=bytes(100))
    text = f"Request for model m has {len(body)} bytes, and its policy allows 100"
    for metadata in ({}, {"x_model_name": "m"}):
        answer = await fleet.call(body, **metadata)
        assert (answer.code, answer.details) == (EXHAUSTED, text)
    large = b"x" * 101
    status, shown, _ = await asyncio.to_thread(fleet.rest, "/v1/models/m:predict", large)
    assert (status, json.loads(shown)) == (
        413,
        {"error": "Request for model m has 101 bytes, and its policy allows 100"},
    )
    chunked = {"transfer-encoding": "chunked"}
    status, shown, _ = await asyncio.to_thread(fleet.rest, "/v1/models/m:predict", large, chunked)
    assert (status, "101 bytes" in shown) == (413, True), shown
    assert (await asyncio.to_thread(fleet.rest, "/v1/models/m:predict", b"{}"))[0] == 200
    assert (await fleet.call(request("m"))).code is OK
    echo.seen.clear()
    echo.fail_with = grpc.StatusCode.UNAVAILABLE
    assert (await fleet.call(request("m"))).code is UNAVAILABLE
    assert len(echo.seen) == 1, "no retries"
    echo.fail_with, echo.delay = None, 5
    answer = await fleet.call(request("m"))
    assert (answer.code, answer.details) == (DEADLINE, "Deadline exceeded by model m")
    # A client can neither loosen nor set any of it.
    answer = await fleet.call(request("m"), x_envoy_upstream_rq_timeout_ms="9000", x_modelplane_shadow="@shadow")
    assert answer.code is DEADLINE
    assert not any("shadow" in key for headers in echo.metadata for key in headers)
    echo.delay = 0


async def test_protobuf_reads_what_the_router_wrote(fleet: Fleet, echo: EchoServer, other: EchoServer) -> None:
    """Random requests, some of them damaged: the script never fails, and of those that are whole protobuf reads the
    version that was drawn, in the request and in its copy. Waits for the copies."""
    long = "a/ü" + "x" * 200
    wide = shared(model(long, {2**40: [echo.port], 2**62 + 1: [other.port]}, 2**40), {2**40: 1}, labels=(("l", 2**40),))
    mirrors = (Mirror(100, long, 2**62 + 1),)
    await fleet.start([replace(wide, traffic=replace(wide.traffic, mirrors=mirrors, compare=1.0, between=(1, 2)))])
    chance = random.Random(5)
    whole = 0
    for number in range(200):
        parts = [field(1, spec(long, label=chance.choice([None, "l"]), signature="s")), field(3, "output")]
        parts += [b"\x50" + varint(chance.getrandbits(60)), field(2, chance.randbytes(chance.choice([0, 20, 300])))]
        chance.shuffle(parts)
        sent = bytearray(b"".join(parts))
        if number % 3 == 0:
            sent[chance.randrange(len(sent))] ^= 1 << chance.randrange(8)
        answer = await fleet.call(bytes(sent), chance.choice([PREDICT, CLASSIFY, METADATA, MULTI_INFERENCE]))
        whole += answer.code is OK
    await fleet.call(request(long, label="l"), CLASSIFY)
    await eventually(lambda: other.seen and other.seen[-1][0] == CLASSIFY, "the last copy", 5)
    assert (whole > 80, len(other.seen) > 40) == (True, True)
    for server, version in ((echo, 2**40), (other, 2**62 + 1)):
        for method, message in server.seen:
            if method in (PREDICT, CLASSIFY) and (read := _spec(message)) is not None:
                assert (read.name, read.version.value, read.version_label) == (long, version, "")
    counted = fleet.envoy.stats("lua")
    assert not [name for name, value in counted.items() if name.endswith(".errors") and value]


def _spec(message: bytes) -> Any:
    """Field 1, merged, if it can be read and was not damaged in a way that changes its name."""
    request_message = get_model_status_pb2.GetModelStatusRequest()
    try:
        request_message.ParseFromString(message)
    except DecodeError:
        return None
    return request_message.model_spec if request_message.model_spec.signature_name == "s" else None


async def test_a_policy_allows_retries_where_the_fleet_has_none(tmp_path: Path, echo: EchoServer) -> None:
    fleet = Fleet(tmp_path, num_retries=0)
    base = model("n", {3: [echo.port]})
    await fleet.start([replace(model("m", {3: [echo.port]}), handling=Handling(retries=2)), base])
    echo.fail_with = UNAVAILABLE
    try:
        for name, tries in (("n", 1), ("m", 3)):
            echo.seen.clear()
            assert (await fleet.call(request(name))).code is UNAVAILABLE
            assert len(echo.seen) == tries
    finally:
        await fleet.close()
