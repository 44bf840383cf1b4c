"""What clients see of large bodies, deadlines, stalled senders and failing instances: real Envoy, real gRPC."""

from __future__ import annotations

import asyncio
import collections
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from control_plane.model import Endpoint, Health, Model
from tests.support.echo import EchoServer
from tests.support.fleet import PREDICT, Fleet, model
from tests.support.processes import ChildProcess, free_port, wait_for_port
from tests.support.requests import request
from tests.support.waiting import eventually

OK, UNAVAILABLE, EXHAUSTED = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED
DEADLINE = grpc.StatusCode.DEADLINE_EXCEEDED
SESSION_RUN = "/tensorflow.serving.SessionService/SessionRun"
MIB = 1024 * 1024


@pytest_asyncio.fixture
async def other() -> AsyncIterator[EchoServer]:
    async with EchoServer("b") as server:
        yield server


class Instance(ChildProcess):
    """An echo server that can be killed."""

    def __init__(self, folder: Path, identity: str, port: int = 0, delay: float = 0.0) -> None:
        self.port = port or free_port()
        self.identity = identity
        root = str(Path(__file__).parents[2])
        arguments = [sys.executable, "-m", "tests.support.echo", identity, str(self.port), str(delay)]
        super().__init__(arguments, folder / f"{identity}.log", {"PYTHONPATH": root})
        wait_for_port(self.port, self)


@pytest.mark.parametrize("size", [200, 600 * 1024, 8 * MIB, 100 * MIB])
@pytest.mark.parametrize("name", ["m", "pinned"])
async def test_bodies_arrive_bit_equal(fleet: Fleet, echo: EchoServer, name: str, size: int) -> None:
    await fleet.start([model("m", {1: [echo.port]}), model("pinned", {1: [echo.port]})], {"pinned": 1})
    sent = request(name, payload=os.urandom(size))
    answer = await fleet.call(sent, timeout=60)
    expected = sent if name == "m" else request(name) + b"\x0a\x04\x12\x02\x08\x01" + sent[len(request(name)) :]
    assert answer.code is OK, answer.details
    assert answer.message == expected
    assert echo.seen == [(PREDICT, expected)]


async def test_a_body_above_the_limit(fleet: Fleet, echo: EchoServer) -> None:
    await fleet.start([model("m", {1: [echo.port]})])
    answer = await fleet.call(request("m", payload=bytes(128 * MIB)), timeout=60)
    assert (answer.code, answer.details) == (EXHAUSTED, "Request is larger than 134217728 bytes")
    assert (await fleet.call(request("m", payload=bytes(127 * MIB)), timeout=60)).code is OK


async def test_the_clients_deadline_holds_and_harms_nobody_else(
    fleet: Fleet, echo: EchoServer, other: EchoServer
) -> None:
    """A storm of short deadlines on a slow model must not look like failing instances to outlier detection."""
    echo.delay = other.delay = 0.3
    await fleet.start([model("m", {1: [echo.port, other.port]})])
    began = time.monotonic()
    answer = await fleet.call(request("m"), timeout=0.05)
    assert answer.code is DEADLINE
    assert time.monotonic() - began < 0.25
    for _ in range(4):
        storm = await asyncio.gather(*(fleet.call(request("m"), timeout=0.05) for _ in range(50)))
        assert {answer.code for answer in storm} == {DEADLINE}
    fine = await asyncio.gather(*(fleet.call(request("m")) for _ in range(20)))
    assert {answer.code for answer in fine} == {OK}
    # The same from clients that leave it to Envoy, which counts no cancellation but a timeout then.
    storm = await asyncio.gather(*(fleet.call(request("m"), timeout=None, grpc_timeout="50m") for _ in range(100)))
    assert {answer.code for answer in storm} == {DEADLINE}
    stats = fleet.envoy.stats("cluster.m.")
    assert stats["cluster.m.outlier_detection.ejections_active"] == 0


async def test_envoy_enforces_the_deadline_by_itself(fleet: Fleet) -> None:
    """The deadline in the header, from a client that waits longer than it said, for a server that says nothing: one
    that speaks gRPC would end the request at the same moment."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        await fleet.start([model("m", {1: [silent.getsockname()[1]]})])
        answer = await fleet.call(request("m"), timeout=None, grpc_timeout="50m")
    assert (answer.code, answer.details) == (DEADLINE, "Deadline exceeded by model m")


async def test_a_slow_model_has_all_the_time_that_its_client_gives(tmp_path: Path, echo: EchoServer) -> None:
    """request_timeout is for sending only: a model that takes longer than it must not be cut off."""
    fleet = Fleet(tmp_path, request_timeout=0.3)
    try:
        echo.delay = 1.0
        await fleet.start([model("m", {1: [echo.port]})])
        assert (await fleet.call(request("m"), timeout=None)).code is OK
        stalled = fleet.channel.stream_unary(PREDICT)()
        await stalled.write(request("m"))  # and never the end of the request
        assert await stalled.code() is DEADLINE
        assert await stalled.details() == "Request did not arrive within 0.3 s"
    finally:
        await fleet.close()


async def test_what_is_safe_to_repeat_is_retried_elsewhere(fleet: Fleet, echo: EchoServer, other: EchoServer) -> None:
    echo.fail_with = UNAVAILABLE
    await fleet.start([model("m", {1: [echo.port, other.port]})])
    answers = await asyncio.gather(*(fleet.call(request("m")) for _ in range(15)))
    assert {answer.identity for answer in answers} == {"b"}
    assert len(echo.seen) > 0
    large = request("m", payload=os.urandom(8 * MIB))
    assert [(await fleet.call(large)).message == large for _ in range(4)] == [True] * 4
    echo.seen.clear()
    other.seen.clear()
    answers = await asyncio.gather(*(fleet.call(request("m"), SESSION_RUN) for _ in range(15)))
    assert len(echo.seen) + len(other.seen) == 15  # each once, whatever became of it
    assert sum(answer.code is UNAVAILABLE for answer in answers) == len(echo.seen)


async def test_what_never_reached_a_server_is_sent_to_another(fleet: Fleet, echo: EchoServer) -> None:
    """Also what may not be repeated: nobody listens at the other endpoint."""
    await fleet.start([model("m", {1: [echo.port, free_port()]})])
    answers = await asyncio.gather(*(fleet.call(request("m"), SESSION_RUN) for _ in range(15)))
    assert {answer.identity for answer in answers} == {"a"}


async def test_errors_that_a_retry_cannot_mend_are_passed_on(fleet: Fleet, echo: EchoServer) -> None:
    await fleet.start([model("m", {1: [echo.port]})])
    for code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.FAILED_PRECONDITION):
        echo.fail_with = code
        answer = await fleet.call(request("m"))
        assert (answer.code, answer.details) == (code, "a was told to fail")
    assert len(echo.seen) == 3


async def test_too_many_requests_in_flight(tmp_path: Path, echo: EchoServer) -> None:
    fleet = Fleet(tmp_path, max_requests=2)
    try:
        echo.delay = 0.3
        await fleet.start([model("m", {1: [echo.port]})])
        answers = await asyncio.gather(*(fleet.call(request("m")) for _ in range(6)))
        refused = [answer for answer in answers if answer.code is not OK]
        assert len(refused) == 4
        assert {(a.code, a.details) for a in refused} == {(UNAVAILABLE, "Too many requests in flight for model m")}
    finally:
        await fleet.close()


@pytest.mark.parametrize("health", [None, Health.UNANSWERED, Health.DRAINING])
async def test_the_last_usable_instance_is_asked_whatever_it_answers(
    fleet: Fleet, echo: EchoServer, other: EchoServer, health: Health | None
) -> None:
    """Envoy ejects a share of all that is listed, used or not, and a client's broken input can cause that many server
    errors: it may be the only one that is left."""
    endpoints = [Endpoint("a", "127.0.0.1", echo.port)]
    if health is not None:
        endpoints.append(Endpoint("b", "127.0.0.1", other.port, health=health))
    echo.fail_with = grpc.StatusCode.INTERNAL
    await fleet.start([Model("m", ((1, tuple(endpoints)),), 1, pinned=False)])
    answers = [await fleet.call(request("m")) for _ in range(30)]
    ejected = "cluster.m.outlier_detection.ejections_active"
    await eventually(lambda: fleet.envoy.stats(ejected)[ejected] == (health is not None), "the ejection")
    # Few at once: a weight counts for less with each request in flight.
    answers += await asyncio.gather(*(fleet.call(request("m")) for _ in range(40)))
    assert {answer.code for answer in answers} == {grpc.StatusCode.INTERNAL}
    assert other.seen == []


async def test_no_instance_answers(fleet: Fleet) -> None:
    await fleet.start([model("m", {1: [free_port(), free_port()]})])
    for _ in range(20):  # ejected or not, it is the same to the client
        answer = await fleet.call(request("m"))
        assert answer.code is UNAVAILABLE
        assert "model m" in answer.details


async def test_draining_instances_get_nothing_new(fleet: Fleet, echo: EchoServer, other: EchoServer) -> None:
    """Not even when all of them drain, which is when Envoy by itself would use them again."""

    def known(first: Health, second: Health) -> Model:
        a = Endpoint("a", "127.0.0.1", echo.port, health=first)
        b = Endpoint("b", "127.0.0.1", other.port, health=second)
        return Model("m", ((1, (a, b)),), 1, pinned=False)

    echo.delay = 0.5
    await fleet.start([known(Health.READY, Health.DRAINING)])
    running = asyncio.create_task(fleet.call(request("m")))
    await eventually(lambda: echo.seen, "the first request to arrive")
    fleet.publish([known(Health.DRAINING, Health.SUSPECT)])

    async def moved() -> bool:
        return (await fleet.call(request("m"))).identity == "b"

    await eventually(moved, "requests to go to the other instance")
    assert (await running).identity == "a"
    echo.seen.clear()
    await asyncio.gather(*(fleet.call(request("m")) for _ in range(10)))
    assert echo.seen == []
    fleet.publish([known(Health.DRAINING, Health.DRAINING)])

    async def refused() -> bool:
        answer = await fleet.call(request("m"))
        return (answer.code, answer.details) == (UNAVAILABLE, "No instance is ready for model m")

    await eventually(refused, "nobody to be left")


async def test_load_is_shared_by_capacity(fleet: Fleet, echo: EchoServer, other: EchoServer) -> None:
    endpoints = (
        Endpoint("a", "127.0.0.1", echo.port, zone="x", capacity=1),
        Endpoint("b", "127.0.0.1", other.port, zone="y", capacity=3),
    )
    await fleet.start([Model("m", ((1, endpoints),), 1, pinned=False), model("even", {1: [echo.port, other.port]})])
    for name, low, high in (("m", 60, 90), ("even", 30, 70)):
        answers = [(await fleet.call(request(name))).identity for _ in range(100)]
        assert low <= answers.count("b") <= high, name


async def test_requests_are_counted_per_model(fleet: Fleet, echo: EchoServer) -> None:
    await fleet.start([model("m", {1: [echo.port]}), model("idle", {1: [echo.port]})])
    for _ in range(3):
        await fleet.call(request("m"))

    def counted() -> bool:
        stats = fleet.envoy.stats("cluster.m.upstream_rq")
        return stats["cluster.m.upstream_rq_total"] == 3 and stats["cluster.m.upstream_rq_200"] == 3

    await eventually(counted, "the requests to be counted")
    assert fleet.envoy.stats("cluster.m.membership")["cluster.m.membership_healthy"] == 1
    assert len(fleet.envoy.stats("cluster.idle.")) < 40


@pytest.mark.scenario
@pytest.mark.parametrize(("instances", "clients"), [(3, 24), (2, 96)])
async def test_killing_an_instance_loses_no_request(fleet: Fleet, tmp_path: Path, instances: int, clients: int) -> None:
    """Waits until all instances answer, kills one under load, goes on, starts it again and waits for its answers."""
    running = [Instance(tmp_path, f"i{number}", delay=0.05) for number in range(instances)]
    seen: collections.Counter[str] = collections.Counter()
    stop = asyncio.Event()

    async def client() -> None:
        while not stop.is_set():
            answer = await fleet.call(request("m", payload=b"x" * 200))
            assert answer.code is OK, answer
            seen[answer.identity] += 1

    async def all_answer() -> bool:
        before = seen.copy()
        await asyncio.sleep(0.2)
        return all(seen[instance.identity] > before[instance.identity] for instance in running)

    try:
        await fleet.start([model("m", {1: [instance.port for instance in running]})])
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(client())
            await eventually(all_answer, "every instance to answer")
            victim = running[0]
            victim.kill()
            after = sum(seen.values())
            await eventually(lambda: sum(seen.values()) > after + 20 * clients, "the load to go on")
            victim.stop()
            running[0] = Instance(tmp_path, victim.identity, victim.port, delay=0.05)
            await eventually(all_answer, "the instance to take part again")
            stop.set()
    finally:
        for instance in running:
            instance.stop()
