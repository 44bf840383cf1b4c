"""The gRPC model router, in a real Envoy, in front of a real gRPC server that tells what reached it."""

from __future__ import annotations

import random

import grpc
import pytest
from tensorflow_serving.apis import predict_pb2

from control_plane.resources import router
from tests.support.echo import EchoServer
from tests.support.fleet import PREDICT, STATUS, Fleet, model
from tests.support.requests import field, request, spec, varint
from tests.support.waiting import eventually

OK, NOT_FOUND, INVALID = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
UNIMPLEMENTED, UNAVAILABLE = grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE
SERVICE = "/tensorflow.serving.PredictionService/"
HUGE = 2**63 - 1
AWKWARD = "Ünïcode @ 100% [x]"


async def start(fleet: Fleet, echo: EchoServer, pins: dict[str, int] | None = None) -> None:
    names = ("m", "m/sub:1", AWKWARD, "pinned", "n" * 300)
    models = [
        model(name, {1: [echo.port], 2: [echo.port], 2**53 + 1: [], HUGE: [echo.port]}, served=2) for name in names
    ]
    await fleet.start([*models, model("loading", {1: []})], pins)


@pytest.mark.parametrize("name", ["m", "m/sub:1", AWKWARD, "n" * 300])
async def test_a_request_reaches_its_model_unchanged(fleet: Fleet, echo: EchoServer, name: str) -> None:
    await start(fleet, echo)
    for sent in (
        request(name, payload=b"tensor"),
        request(name, signature="serving_default", payload=b"tensor"),
        request(name, 1, payload=b"tensor"),
        request(name, HUGE, signature="s"),
        request(name, label="stable"),
    ):
        answer = await fleet.call(sent)
        assert (answer.code, answer.message, answer.identity) == (OK, sent, "a"), answer.details
    clusters = {seen["x-modelplane-cluster"].partition("@")[2] for seen in echo.metadata}
    assert clusters == {"", "1", str(HUGE)}


async def test_legal_spellings_that_no_official_client_uses(fleet: Fleet, echo: EchoServer) -> None:
    await start(fleet, echo)
    one = field(1, spec("m"))
    for sent, cluster in (
        (field(2, b"x" * 100_000) + one, "m"),  # the model_spec last
        (b"\x50\x01" + b"\x59" + bytes(8) + b"\x5d" + bytes(4) + one, "m"),  # unknown numbers before it
        (b"\x53" + field(1, b"not it") + b"\x54" + one, "m"),  # an unknown group before it
        (b"\x8a\x80\x00" + varint(3) + spec("m"), "m"),  # a tag longer than needed
        (field(1, field(4, "label") + field(2, b"\x08\x01") + field(1, "m")), "m@1"),  # a oneof: the last one holds
        (field(1, field(2, b"\x08\x01") + field(1, "m") + field(4, "label")), "m"),
        (field(1, field(1, "other") + field(1, "m")), "m"),
        (field(1, b"\x50\x01" + field(1, "m") + field(11, b"unknown")), "m"),
        (field(1, b"\x59" + bytes(8) + b"\x5d" + bytes(4) + field(1, "m")), "m"),
    ):
        answer = await fleet.call(sent)
        assert (answer.code, answer.message) == (OK, sent), (sent[:40], answer.details)
        assert echo.metadata[-1]["x-modelplane-cluster"] == cluster


@pytest.mark.parametrize("method", ["Classify", "Regress", "GetModelMetadata"])
async def test_every_method_is_routed(fleet: Fleet, echo: EchoServer, method: str) -> None:
    await start(fleet, echo, {"pinned": 2})
    assert (await fleet.call(request("m"), SERVICE + method)).code is OK
    assert (await fleet.call(request("pinned"), SERVICE + method)).message == request("pinned") + field(1, spec("", 2))
    assert echo.seen[0] == (SERVICE + method, request("m"))


TOLD = field(1, spec("", 2))


async def test_multi_inference_and_session_run(fleet: Fleet, echo: EchoServer) -> None:
    await start(fleet, echo, {"pinned": 2})
    long = field(2, "classify" * 15)  # the task's length gets a byte longer with the version
    for name, method, added in (("m", field(2, "x"), b""), *(("pinned", m, TOLD) for m in (field(2, "x"), long))):
        first, rest = method + field(1, spec(name)), field(1, field(1, spec(name))) + field(2, b"input")
        answer = await fleet.call(b"\x18\x07" + field(1, first) + rest, SERVICE + "MultiInference")
        # The first task's version is the one that holds for all.
        assert (answer.code, answer.message) == (OK, b"\x18\x07" + field(1, first + added) + rest)
        assert echo.metadata[-1]["x-modelplane-cluster"] == (f"{name}@2" if added else name)
    none = await fleet.call(field(1, field(2, "classify")), SERVICE + "MultiInference")
    assert (none.code, none.details) == (INVALID, "Missing ModelSpec")
    session = "/tensorflow.serving.SessionService/SessionRun"
    assert (await fleet.call(request("pinned"), session)).message == request("pinned") + field(1, spec("", 2))


async def test_pinning_writes_the_version_and_nothing_else(fleet: Fleet, echo: EchoServer) -> None:
    await start(fleet, echo, {"pinned": 2, AWKWARD: HUGE})
    plain = predict_pb2.PredictRequest()
    plain.model_spec.name = "pinned"
    plain.model_spec.signature_name = "serving_default"
    plain.inputs["x"].float_val.extend([1.0, 2.0])
    reached = predict_pb2.PredictRequest.FromString((await fleet.call(plain.SerializeToString())).message)
    assert reached.model_spec.version.value == 2
    assert echo.metadata[-1]["x-modelplane-cluster"] == "pinned@2"
    reached.model_spec.ClearField("version")
    assert reached == plain

    awkward = predict_pb2.PredictRequest.FromString((await fleet.call(request(AWKWARD))).message)
    assert (awkward.model_spec.name, awkward.model_spec.version.value) == (AWKWARD, HUGE)

    late = field(2, b"x" * 300) + field(1, spec("pinned")) + field(3, "y")
    assert (await fleet.call(late)).message == field(2, b"x" * 300) + field(1, spec("pinned")) + field(
        1, spec("", 2)
    ) + field(3, "y")

    for asked in (request("pinned", 1), request("pinned", label="stable"), request("m")):  # what the client says holds
        assert (await fleet.call(asked)).message == asked
    status = await fleet.call(request("pinned"), STATUS)
    assert status.message == request("pinned")
    assert echo.metadata[-1]["x-modelplane-cluster"] == "pinned"


async def test_pins_change_while_envoy_runs(fleet: Fleet, echo: EchoServer) -> None:
    await start(fleet, echo)
    models = [model("m", {1: [echo.port], 2: [echo.port]})]
    pins = {f"model-{number}": number for number in range(20_000)} | {"m": 2}
    fleet.publish(models, pins)

    async def pinned() -> bool:
        return (await fleet.call(request("m"))).message != request("m")

    await eventually(pinned, "the pin to be in force")
    assert (await fleet.call(request("m"))).message == request("m") + field(1, spec("", 2))


async def test_the_header_spares_reading_the_body(fleet: Fleet, echo: EchoServer) -> None:
    await start(fleet, echo, {"pinned": 2})
    garbage = b"\xff" * 40  # can't be read, so it wasn't
    assert (await fleet.call(garbage, x_model_name="m")).message == garbage
    assert (await fleet.call(garbage, x_model_name="m", x_model_version="001")).message == garbage
    assert [seen["x-modelplane-cluster"] for seen in echo.metadata] == ["m", "m@1"]
    unknown = await fleet.call(garbage, x_model_name="nope", x_model_version=str(HUGE))
    assert (unknown.code, unknown.details) == (NOT_FOUND, f"Servable not found for request: Specific(nope, {HUGE})")
    wrong = await fleet.call(garbage, x_model_name="m", x_model_version="newest")
    assert (wrong.code, wrong.details) == (INVALID, "x-model-version is not a version number: newest")
    # A model whose servers hold several versions must be told in the body which one.
    assert (await fleet.call(request("pinned"), x_model_name="pinned")).message == request("pinned") + field(
        1, spec("", 2)
    )
    pinned = await fleet.call(request("pinned"), x_model_name="pinned", x_model_version="1")
    assert pinned.message == request("pinned") + field(1, spec("", 1))
    assert (await fleet.call(garbage, STATUS, x_model_name="pinned")).code is OK


async def test_errors_are_tf_servings_own(fleet: Fleet, echo: EchoServer) -> None:
    await start(fleet, echo)
    bad = "Malformed request: its model_spec cannot be read"
    for body, method, code, details in (
        (request("nope"), PREDICT, NOT_FOUND, "Servable not found for request: Latest(nope)"),
        (request("nope", 3), PREDICT, NOT_FOUND, "Servable not found for request: Specific(nope, 3)"),
        (request("m", 9), PREDICT, NOT_FOUND, "Servable not found for request: Specific(m, 9)"),
        (request("m", 0), PREDICT, NOT_FOUND, "Servable not found for request: Specific(m, 0)"),
        (request("m", -1), PREDICT, NOT_FOUND, "Servable not found for request: Specific(m, -1)"),
        (request("m", -(2**63)), PREDICT, NOT_FOUND, f"Servable not found for request: Specific(m, {-(2**63)})"),
        (request("m", 2**53), PREDICT, NOT_FOUND, f"Servable not found for request: Specific(m, {2**53})"),
        (request("grüße %41"), PREDICT, NOT_FOUND, "Servable not found for request: Latest(grüße %41)"),
        (request("a\nb"), PREDICT, NOT_FOUND, "Servable not found for request: Latest(a?b)"),
        (request("@xds"), PREDICT, NOT_FOUND, "Servable not found for request: Latest(@xds)"),
        (request("@rest/m"), PREDICT, NOT_FOUND, "Servable not found for request: Latest(@rest/m)"),
        (request("m@1"), PREDICT, NOT_FOUND, "Servable not found for request: Latest(m@1)"),
        (request("m%401"), PREDICT, NOT_FOUND, "Servable not found for request: Latest(m%401)"),
        (request("nope", label="new"), PREDICT, INVALID, "Unrecognized servable version label: new"),
        (request("nope"), STATUS, NOT_FOUND, "Could not find any versions of model nope"),
        (request("nope", 3), STATUS, NOT_FOUND, "Could not find any versions of model nope"),
        (request(""), STATUS, NOT_FOUND, "Could not find any versions of model "),
        (b"", STATUS, INVALID, "Missing ModelSpec"),
        (b"", PREDICT, INVALID, "Missing ModelSpec"),
        (field(2, b"tensor"), PREDICT, INVALID, "Missing ModelSpec"),
        (request(""), PREDICT, INVALID, "ModelSpec has no name specified."),
        (field(1, spec("", 3)), PREDICT, INVALID, "ModelSpec has no name specified."),
        (b"\x0a\x80", PREDICT, INVALID, bad),
        (b"\x0a\x01\x0a", PREDICT, INVALID, bad),
        (b"\x0a\x05\x0a\x09ab", PREDICT, INVALID, bad),
        (b"\x0a\xff\xff\xff\xff\x0f", PREDICT, INVALID, bad),
        (b"\xff" * 50, PREDICT, INVALID, bad),
        (b"\x07\x07", PREDICT, INVALID, bad),
        (request("loading"), PREDICT, UNAVAILABLE, "No instance is ready for model loading"),
        (request("m", 2**53 + 1), PREDICT, UNAVAILABLE, f"No instance is ready for model m version {2**53 + 1}"),
    ):
        answer = await fleet.call(body, method)
        assert (answer.code, answer.details) == (code, details), (body[:40], method)
    long = await fleet.call(request("x" * 2000))
    assert long.code is NOT_FOUND
    assert "longer than 1024 bytes" in long.details
    assert echo.seen == []


async def test_what_is_not_proxied(fleet: Fleet, echo: EchoServer) -> None:
    await start(fleet, echo)
    for method in (
        "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
        "/tensorflow.serving.PredictionService/Unknown",
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        "/a/b%20c",
    ):
        answer = await fleet.call(request("m"), method)
        assert answer.code is UNIMPLEMENTED
        assert answer.details.startswith(f"Not proxied here: {method}; ")


async def test_compression_is_refused_with_the_mend(fleet: Fleet, echo: EchoServer) -> None:
    await start(fleet, echo)
    call = fleet.channel.unary_unary(PREDICT)(request("m", payload=b"a" * 500), compression=grpc.Compression.Gzip)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is UNIMPLEMENTED
    assert "switch the client's compression off" in (caught.value.details() or "")
    named = fleet.channel.unary_unary(PREDICT)(
        request("m", payload=b"a" * 500), compression=grpc.Compression.Gzip, metadata=(("x-model-name", "m"),)
    )
    assert await named == request("m", payload=b"a" * 500)  # its body needn't be read


async def test_a_client_cannot_name_a_cluster_by_itself(fleet: Fleet, echo: EchoServer) -> None:
    await start(fleet, echo)
    forged = {"x_modelplane_cluster": "m", "x_modelplane_not_found": "forged", "x_modelplane_label": "1"}
    answer = await fleet.call(request("nope"), **forged, x_modelplane_model="forged")
    assert (answer.code, answer.details) == (NOT_FOUND, "Servable not found for request: Latest(nope)")
    assert (await fleet.call(request("m"), **forged, x_envoy_max_retries="9")).code is OK
    ours = {name for name in echo.metadata[-1] if name.startswith(("x-modelplane", "x-envoy"))}
    assert ours == {"x-modelplane-cluster"}


async def test_a_router_that_fails_lets_nobody_choose_a_cluster(
    fleet: Fleet, echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "lua_source", lambda *_, **__: "function envoy_on_request(handle) error('broken') end")
    await start(fleet, echo)
    answer = await fleet.call(request("m"), x_modelplane_cluster="m")
    assert (answer.code, answer.details) == (grpc.StatusCode.INTERNAL, "The model router failed on this request")
    assert echo.seen == []
    assert _script_errors(fleet) == (1, 1)


async def test_the_router_agrees_with_protobuf_on_random_requests(fleet: Fleet, echo: EchoServer) -> None:
    """Random specs, random junk around them, random damage: never a crash of the script, and where protobuf reads a
    name, the router reads the same."""
    await start(fleet, echo)
    chance = random.Random(7)
    for _ in range(400):
        name = chance.choice(["m", "nope", "a/b", "ü", ""])
        version = chance.choice([None, 0, 5, 300, 2**40 + 3, 2**62 + 1])
        label = chance.choice([None, "stable"]) if version is None else None
        parts = [field(1, spec(name, version, label)), field(3, "output"), b"\x50" + varint(chance.getrandbits(60))]
        chance.shuffle(parts)
        sent = b"".join(parts)
        damaged = chance.random() < 0.4
        if damaged:
            sent = bytearray(sent)
            sent[chance.randrange(len(sent))] ^= 1 << chance.randrange(8)
            sent = bytes(sent)
        answer = await fleet.call(sent)
        if not damaged:
            expected = _expected(name, version, label)
            assert (answer.code, answer.details) == expected, (sent, name, version, label)
        else:
            assert answer.code in (OK, NOT_FOUND, INVALID, UNAVAILABLE), answer
    assert _script_errors(fleet) == (400, 0)


async def test_no_damage_makes_the_script_fail(fleet: Fleet, echo: EchoServer) -> None:
    """Short bodies of the bytes that mean something to the parser, every length down to nothing."""
    await start(fleet, echo, {"m": 2})
    chance = random.Random(11)
    telling = b"\x00\x01\x02\x03\x05\x08\x0a\x0a\x0a\x12\x1a\x22\x7f\x80\xff" + b"m"
    whole = request("m", HUGE, signature="s", payload=b"x")
    bodies = [whole[:length] for length in range(len(whole))]
    bodies += [bytes(chance.choices(telling, k=chance.randrange(14))) for _ in range(600)]
    for method in (PREDICT, SERVICE + "MultiInference"):
        for body in bodies:
            answer = await fleet.call(body, method)
            assert answer.code in (OK, NOT_FOUND, INVALID, UNAVAILABLE), (body, answer)
    assert _script_errors(fleet) == (2 * len(bodies), 0)


def _script_errors(fleet: Fleet) -> tuple[int, int]:
    prefix = "http.grpc.lua.model_router_grpc"
    counted = fleet.envoy.stats(prefix)
    return counted[f"{prefix}.executions"], counted[f"{prefix}.errors"]


def _expected(name: str, version: int | None, label: str | None) -> tuple[grpc.StatusCode, str]:
    if not name:
        return INVALID, "ModelSpec has no name specified."
    if version is not None:
        return NOT_FOUND, f"Servable not found for request: Specific({name}, {version})"
    if name == "m":
        return OK, ""
    if label:
        return INVALID, f"Unrecognized servable version label: {label}"
    return NOT_FOUND, f"Servable not found for request: Latest({name})"
