"""What Envoys say of their requests comes into the registry: by version, and in flight by instance."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import Keyspace, PlaneTrafficKey, ReadyKey, TrafficKey
from registry.plane_traffic import PlaneTraffic, VersionTotals, decode_plane_traffic
from registry.traffic import TrafficRecord, encode_traffic
from tests.support import saved_models
from tests.support.saved_models import prediction_service_pb2_grpc
from tests.support.stack import Stack
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


async def traffic(stack: Stack) -> PlaneTraffic:
    async with EtcdClient(EtcdConfig((stack.etcd.endpoint,))) as client:
        entry = await client.get(Keyspace().make(PlaneTrafficKey("plane-0")))
    assert entry is not None, "nothing was published"
    return decode_plane_traffic(entry.value)


async def observe(stack: Stack, stub: Any) -> None:
    """Each of the record, the router, Envoy and the control plane has to take the others' word for it."""
    async with EtcdClient(EtcdConfig((stack.etcd.endpoint,))) as client:
        await client.put(Keyspace().make(TrafficKey("m")), encode_traffic(TrafficRecord({1: 1}, observe=1.0)))

    async def observed() -> bool:
        await stub.Predict(saved_models.predict_request("m", [2.0]))
        return (await traffic(stack)).servables[("m", 1)].observed > 5

    await eventually(observed, "requests to be observed")
    wrong = saved_models.predict_request("m", [2.0])
    wrong.inputs["y"].CopyFrom(wrong.inputs.pop("x"))
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Predict(wrong)

    async def failed() -> bool:
        said = (await traffic(stack)).servables[("m", 1)]
        assert said.observed_errors == 1, said
        return sum(said.latency) == said.observed

    await eventually(failed, "the error to be told")


async def test_requests_are_counted_by_version_in_flight_by_instance_and_observed_by_their_end(tmp_path: Path) -> None:
    """Waits until the control plane has written what was asked of a model that came after Envoy was first asked for its
    reports, what is in flight while requests sleep, and how observed requests ended: those come by way of the model's
    traffic record, the router and Envoy's access log. No leader, which would delete a record without a policy."""
    stack = Stack(tmp_path, ("--no-leader", "--statistics-interval", "0.5"))
    try:
        stack.start_instance("a", {"m": tmp_path / "models" / "m", "s": tmp_path / "models" / "s"})
        saved_models.half_plus_two(tmp_path / "models" / "m")
        saved_models.slow(tmp_path / "models" / "s", seconds=4.0)
        await stack.until_ready(ReadyKey("m", 1, "a"), ReadyKey("s", 1, "a"))
        async with grpc.aio.insecure_channel(stack.grpc) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            for _ in range(40):
                await stub.Predict(saved_models.predict_request("m", [2.0], 1))
            slow = [stub.Predict(saved_models.predict_request("s", [2.0])) for _ in range(3)]

            async def told() -> bool:
                said = await traffic(stack)
                assert said.servables.get(("m", 1)) == VersionTotals(requests=40), said
                assert said.instances == {"a": 3}, said
                return True

            await eventually(told, "40 requests, and 3 in flight")
            await asyncio.gather(*slow)

            async def ended() -> bool:
                said = await traffic(stack)
                assert not said.instances, said
                return sum(one.requests for (model, _), one in said.servables.items() if model == "s") == 3

            await eventually(ended, "nothing to be in flight")
            await observe(stack, stub)
    finally:
        stack.close()


async def test_the_times_of_every_model_s_requests_are_told_where_the_fleet_wants_it(tmp_path: Path) -> None:
    """Waits until the control plane has heard of requests, with a version and without, for a model without a policy."""
    stack = Stack(tmp_path, ("--no-leader", "--statistics-interval", "0.5", "--observe-percent", "100"))
    try:
        stack.start_instance("a", {"m": tmp_path / "models" / "m"})
        saved_models.half_plus_two(tmp_path / "models" / "m")
        await stack.until_ready(ReadyKey("m", 1, "a"))
        async with grpc.aio.insecure_channel(stack.grpc) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            for version in (None, 1):
                for _ in range(10):
                    await stub.Predict(saved_models.predict_request("m", [2.0], version))

        async def told() -> bool:
            said = [one for (model, _), one in (await traffic(stack)).servables.items() if model == "m"]
            assert [sum(one.observed for one in said), sum(sum(one.latency) for one in said)] == [20, 20], said
            return not any(one.observed_errors for one in said)

        await eventually(told, "the times of 20 requests")
    finally:
        stack.close()
