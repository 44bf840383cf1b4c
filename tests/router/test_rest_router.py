"""The REST model router, in a real Envoy, in front of an HTTP server that tells what reached it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest_asyncio

from control_plane.model import Endpoint, Model
from tests.support.echo import EchoRest
from tests.support.fleet import Fleet
from tests.support.processes import free_port

BODY = b'{"instances": [1.0, 2.0]}'


@pytest_asyncio.fixture
async def rest() -> AsyncIterator[EchoRest]:
    async with EchoRest("a") as server:
        yield server


def known(name: str, port: int) -> Model:
    endpoint = (Endpoint("a", "127.0.0.1", 1, port),)
    return Model(name, ((1, endpoint), (2, endpoint), (3, ())), 2, pinned=False)


async def start(fleet: Fleet, rest: EchoRest) -> None:
    names = ("m", "a b/c", "ü", "pinned")
    grpc_only = Model("grpc-only", ((1, (Endpoint("a", "127.0.0.1", 1),)),), 1, pinned=False)
    await fleet.start([*(known(name, rest.port) for name in names), grpc_only], {"pinned": 2, "ü": 2})


async def ask(fleet: Fleet, path: str, body: bytes | None = None) -> tuple[int, dict[str, object]]:
    status, text, headers = await asyncio.to_thread(fleet.rest, path, body)
    assert headers["content-type"] == "application/json", (path, text)
    return status, json.loads(text)


UNCHANGED = (
    "/v1/models/m:predict",
    "/v1/models/m:classify",
    "/v1/models/m:regress",
    "/v1/models/m/versions/1:predict",
    "/v1/models/m/labels/stable:predict",
    "/V1/Models/m:Predict",
    "/v1/models/m:predict?x=/versions/9",
    "/v1/models/a%20b%2Fc:predict",
    "/v1/models/m",
    "/v1/models/m/versions/9",
    "/v1/models/m/labels/any",
    "/v1/models/m/metadata",
    "/v1/models/m/versions/2/metadata",
    "/v1/models/pinned",
    "/v1/models/pinned/versions/1:predict",
    "/v1/models/pinned/labels/stable:predict",
)


async def test_a_request_reaches_its_model_unchanged(fleet: Fleet, rest: EchoRest) -> None:
    await start(fleet, rest)
    for path in UNCHANGED:
        body = BODY if ":" in path.lower() else None
        method = "POST" if body else "GET"
        reached = {"identity": "a", "method": method, "path": path, "length": len(body or b"")}
        assert await ask(fleet, path, body) == (200, reached)


async def test_large_bodies_pass(fleet: Fleet, rest: EchoRest) -> None:
    await start(fleet, rest)
    status, answer = await ask(fleet, "/v1/models/pinned:predict", bytes(20 * 1024 * 1024))
    assert (status, answer["length"]) == (200, 20 * 1024 * 1024)


async def test_pinning_writes_the_version_into_the_path(fleet: Fleet, rest: EchoRest) -> None:
    await start(fleet, rest)
    for asked, reached in (
        ("/v1/models/pinned:predict", "/v1/models/pinned/versions/2:predict"),
        ("/v1/models/pinned/metadata", "/v1/models/pinned/versions/2/metadata"),
        ("/v1/models/%C3%BC:predict?a=b", "/v1/models/%C3%BC/versions/2:predict?a=b"),
    ):
        assert (await ask(fleet, asked))[1]["path"] == reached


async def test_errors_are_json_in_tf_servings_words(fleet: Fleet, rest: EchoRest) -> None:
    await start(fleet, rest)
    latest, specific = "Servable not found for request: Latest({})", "Servable not found for request: Specific({}, {})"
    for path, status, error in (
        ("/v1/models/nope:predict", 404, latest.format("nope")),
        ("/v1/models/nope/versions/3:predict", 404, specific.format("nope", 3)),
        ("/v1/models/m/versions/007:predict", 404, specific.format("m", 7)),
        ("/v1/models/nope/labels/new:predict", 400, "Unrecognized servable version label: new"),
        ("/v1/models/nope", 404, "Could not find any versions of model nope"),
        ("/v1/models/nope/versions/1", 404, "Could not find any versions of model nope"),
        ("/v1/models/nope/metadata", 404, latest.format("nope")),
        ("/v1/models/%22quoted%22%20%C3%BC%0A:predict", 404, latest.format('"quoted" ü?')),
        ("/v1/models/m/versions/3:predict", 503, "No instance is ready for model m version 3"),
        ("/v1/models/grpc-only:predict", 404, latest.format("grpc-only")),
        ("/v1/models/m@1:predict", 404, latest.format("m@1")),
        ("/v1/models/m:foo", 400, "Malformed request: GET /v1/models/m:foo"),
        ("/v1/models/m/versions/x:predict", 400, "Malformed request: GET /v1/models/m/versions/x:predict"),
        ("/v1/models/m/other", 400, "Malformed request: GET /v1/models/m/other"),
        ("/v1/models/%5C%22/x", 400, "Malformed request: GET /v1/models/%5C%22/x"),
        ("/v1/models", 400, "Missing model name in request."),
        ("/", 404, "Malformed request: GET /"),
        ("/metrics", 404, "Malformed request: GET /metrics"),
    ):
        assert await ask(fleet, path) == (status, {"error": error}), path
    assert rest.paths == []


async def test_a_client_cannot_name_a_cluster_by_itself(fleet: Fleet, rest: EchoRest) -> None:
    await start(fleet, rest)
    forged = {"x-modelplane-cluster": "@rest/m", "x-modelplane-not-found": "forged", "x-modelplane-label": "1"}
    status, text, headers = await asyncio.to_thread(fleet.rest, "/v1/models/nope:predict", BODY, forged)
    assert (status, json.loads(text)) == (404, {"error": "Servable not found for request: Latest(nope)"})
    assert not {name for name in headers if name.lower() in ("server", "x-envoy-upstream-service-time")}


async def test_failures_are_retried_elsewhere_and_then_told(fleet: Fleet, rest: EchoRest) -> None:
    dead = Endpoint("dead", "127.0.0.1", 1, free_port())
    alive = Endpoint("alive", "127.0.0.1", 1, rest.port)
    some, none = Model("some", ((1, (alive, dead)),), 1, pinned=False), Model("none", ((1, (dead,)),), 1, pinned=False)
    await fleet.start([some, none])
    for _ in range(40):
        assert (await ask(fleet, "/v1/models/some:predict", BODY))[0] == 200
    status, answer = await ask(fleet, "/v1/models/none:predict", BODY)
    assert status == 503
    assert str(answer["error"]).startswith("No instance answered for model none: ")
