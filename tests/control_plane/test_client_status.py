"""CSDS, reflection and health: with a real gRPC server and channel, and the machines behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.service.endpoint.v3 import eds_pb2_grpc
from envoy.service.status.v3 import csds_pb2, csds_pb2_grpc
from envoy.type.matcher.v3 import node_pb2
from google.protobuf import descriptor_pool, json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from control_plane.inspection import client_status
from control_plane.inspection.client_status import Client, Offered
from control_plane.inspection.csds import SERVICE, ClientStatus
from control_plane.inspection.health import FOR_ENVOYS, FOR_OPERATORS, Health
from control_plane.inspection.inside import Inside
from control_plane.inspection.nodes import MatcherError, matches
from control_plane.inspection.reflection import enable_reflection
from control_plane.xds.holdings import Holdings, Stage, Unsettled
from control_plane.xds.quarantine import Blame
from control_plane.xds.server import SERVER_OPTIONS, XdsServer
from control_plane.xds.table import ResourceTable
from tests.support.waiting import eventually
from tests.xds.client import CDS, EDS, cluster, endpoints, request


@dataclass
class Served:
    table: ResourceTable
    xds: XdsServer
    channel: grpc.aio.Channel
    address: str
    health: Health

    def change(self, *resources: Any) -> None:
        revision = self.table.revision + 1
        self.xds.publish(self.table.update(resources, [], revision))

    async def status(self, **fields: Any) -> dict[str, Any]:
        """node -> (type, name) -> config, of a fetch; the same from a stream."""
        stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(self.channel)
        asked = csds_pb2.ClientStatusRequest(**fields)
        fetched = await stub.FetchClientStatus(asked)
        stream = stub.StreamClientStatus()
        await stream.write(asked)
        streamed = await stream.read()
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert streamed == fetched
        return {
            config.node.id: {(one.type_url, one.name): one for one in config.generic_xds_configs}
            for config in fetched.config
        }


@asynccontextmanager
async def serving(max_resources: int = 1000) -> AsyncIterator[Served]:
    table = ResourceTable()
    xds = XdsServer(table, settle_seconds=0.0)
    health = Health()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    inside = Inside("plane-0", "0", xds)
    server.add_generic_rpc_handlers((*xds.handlers(), *ClientStatus(inside, max_resources).handlers()))
    health.add_to(server)
    enable_reflection(server, FOR_ENVOYS | FOR_OPERATORS)
    await health.begin()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    change = table.update([cluster("a"), cluster("b"), endpoints("a", 1)], [], 5)
    table.mark_ready()
    xds.publish(change)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            yield Served(table, xds, channel, f"127.0.0.1:{port}", health)
        finally:
            await xds.close()
            await server.stop(None)


def hello(node: str, type_url: str, **fields: Any) -> discovery_pb2.DeltaDiscoveryRequest:
    message = request(type_url, **fields)
    message.node.id = node
    return message


def states(configs: dict[tuple[str, str], Any]) -> dict[str, tuple[str, str]]:
    return {
        name: (
            csds_pb2.ConfigStatus.Name(one.config_status),
            one.DESCRIPTOR.fields_by_name["client_status"].enum_type.values_by_number[one.client_status].name,
        )
        for (_, name), one in configs.items()
    }


async def test_what_a_client_has_acknowledged_refused_and_not_answered() -> None:
    async with serving() as served:
        stream = ads_pb2_grpc.AggregatedDiscoveryServiceStub(served.channel).DeltaAggregatedResources()
        await stream.write(hello("edge-1", CDS))
        response = await stream.read()
        assert states((await served.status())["edge-1"]) == {"a": ("STALE", "REQUESTED"), "b": ("STALE", "REQUESTED")}
        await stream.write(request(CDS, nonce=response.nonce))

        async def told(name: str) -> bool:
            configs = (await served.status())["edge-1"]
            return states(configs)[name][0] != "STALE"

        await eventually(lambda: told("a"), "the ACK")
        configs = (await served.status())["edge-1"]
        assert states(configs) == {"a": ("SYNCED", "ACKED"), "b": ("SYNCED", "ACKED")}
        assert configs[CDS, "a"].version_info == cluster("a").version
        assert configs[CDS, "a"].xds_config.SerializeToString() == cluster("a").body
        assert not configs[CDS, "a"].HasField("error_state")
        slim = (await served.status(exclude_resource_contents=True))["edge-1"]
        assert not slim[CDS, "a"].HasField("xds_config")
        assert slim[CDS, "a"].version_info == cluster("a").version

        served.change(cluster("bad"))
        response = await stream.read()
        await stream.write(request(CDS, nonce=response.nonce, error="no such policy"))
        await eventually(lambda: told("bad"), "the NACK")
        bad = (await served.status())["edge-1"][CDS, "bad"]
        assert states({(CDS, "bad"): bad}) == {"bad": ("ERROR", "NACKED")}
        assert (bad.error_state.version_info, bad.error_state.details) == (cluster("bad").version, "no such policy")
        assert bad.error_state.failed_configuration.SerializeToString() == cluster("bad").body
        stream.cancel()


async def test_clients_are_chosen_by_node_and_separate_streams_are_one() -> None:
    async with serving() as served:
        aggregated = ads_pb2_grpc.AggregatedDiscoveryServiceStub(served.channel)
        one = aggregated.DeltaAggregatedResources()
        await one.write(hello("edge-1", CDS))
        separate = eds_pb2_grpc.EndpointDiscoveryServiceStub(served.channel)
        streams = [separate.StreamEndpoints(), separate.DeltaEndpoints()]
        whole = discovery_pb2.DiscoveryRequest(resource_names=["a"], node=base_pb2.Node(id="edge-2"))
        await streams[0].write(whole)
        await streams[1].write(hello("edge-2", EDS, subscribe=["unknown"]))
        for stream in (one, *streams):
            await stream.read()
        everything = await served.status()
        assert set(everything) == {"edge-1", "edge-2"}
        assert set(everything["edge-2"]) == {(EDS, "a"), (EDS, "unknown")}
        unknown = everything["edge-2"][EDS, "unknown"]
        assert (unknown.version_info, unknown.HasField("xds_config")) == ("", False)
        chosen = await served.status(node_matchers=[{"node_id": {"suffix": "-2"}}])
        assert set(chosen) == {"edge-2"}
        assert await served.status(node_matchers=[{"node_id": {"exact": "edge-3"}}]) == {}
        for stream in (one, *streams):
            stream.cancel()


async def test_what_cannot_be_answered_says_why() -> None:
    async with serving(max_resources=1) as served:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await served.status(node_matchers=[{"node_id": {"safe_regex": {"regex": "(a+)+"}}}])
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "use exact, prefix, suffix or contains" in raised.value.details()
        stream = ads_pb2_grpc.AggregatedDiscoveryServiceStub(served.channel).DeltaAggregatedResources()
        await stream.write(hello("edge-1", CDS))
        await stream.read()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await served.status()
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "choose fewer clients with node_matchers" in raised.value.details()
        stream.cancel()


def configs_of(table: ResourceTable, held: Holdings, peer: str = "p") -> Any:
    client = Client(base_pb2.Node(id="n"), peer, {CDS: held}, Offered.of(table))
    raw = client_status.response([[client]], contents=True)
    return {(CDS, one.name): one for one in csds_pb2.ClientStatusResponse.FromString(raw).config[0].generic_xds_configs}


def test_whoever_refused_a_version_is_told_apart_from_who_got_the_last_good_one() -> None:
    table, good, bad, new = ResourceTable(), cluster("a"), cluster("a", 2), cluster("new")
    table.update([good, cluster("b")], [], 1)
    table.acknowledged(good, table.moment.generation)
    table.update([bad, new], [], 2)
    for resource in (bad, new):
        table.quarantine(CDS, resource.name, resource.version, Blame("n", "p", "lb_policy", "bad policy", 0.0))
    settled = Holdings(wildcard=True, names=frozenset(), unsettled={})
    blamed = configs_of(table, settled)
    assert states(blamed) == {"a": ("ERROR", "NACKED"), "b": ("SYNCED", "ACKED"), "new": ("ERROR", "NACKED")}
    one = blamed[CDS, "a"]
    assert one.version_info == good.version, "the last good one, which it has"
    assert one.xds_config.SerializeToString() == good.body
    assert (one.error_state.version_info, one.error_state.details) == (bad.version, "bad policy")
    assert one.error_state.failed_configuration.SerializeToString() == bad.body
    assert states(configs_of(table, settled, peer="another")) == {
        "a": ("SYNCED", "ACKED"),
        "b": ("SYNCED", "ACKED"),
        "new": ("NOT_SENT", "REQUESTED"),
    }


def test_a_newer_version_is_due_after_a_refusal() -> None:
    table = ResourceTable()
    table.update([cluster("a")], [], 1)
    due = Holdings(False, frozenset({"a", "gone"}), {"a": Unsettled(Stage.DUE, "v8", "old error")})
    shown = configs_of(table, due)
    assert states(shown) == {"a": ("NOT_SENT", "REQUESTED"), "gone": ("SYNCED", "DOES_NOT_EXIST")}
    error = shown[CDS, "a"].error_state
    assert (error.version_info, error.details, error.HasField("failed_configuration")) == ("v8", "old error", False)


NODE = base_pb2.Node(id="Edge-7")
json_format.ParseDict(
    {"rack": "r1", "gpu": True, "none": None, "slots": 4, "tags": ["a", "b"], "where": {"zone": "eu-1"}}, NODE.metadata
)


def by_metadata(value: dict[str, Any], *path: str) -> dict[str, Any]:
    return {"node_metadatas": [{"path": [{"key": key} for key in path], "value": value}]}


@pytest.mark.parametrize(
    ("matcher", "expected"),
    [
        ({}, True),
        ({"node_id": {"exact": "Edge-7"}}, True),
        ({"node_id": {"exact": "edge-7"}}, False),
        ({"node_id": {"exact": "edge-7", "ignore_case": True}}, True),
        ({"node_id": {"prefix": "Edge"}}, True),
        ({"node_id": {"contains": "ge-"}}, True),
        ({"node_id": {"suffix": "8"}}, False),
        (by_metadata({"string_match": {"exact": "r1"}}, "rack"), True),
        (by_metadata({"string_match": {"exact": "r1"}}, "gpu"), False),
        (by_metadata({"string_match": {"prefix": "eu"}}, "where", "zone"), True),
        (by_metadata({"string_match": {"prefix": "eu"}}, "rack", "zone"), False),
        (by_metadata({"bool_match": True}, "gpu"), True),
        (by_metadata({"null_match": {}}, "none"), True),
        (by_metadata({"null_match": {}}, "rack"), False),
        (by_metadata({"present_match": True}, "where"), True),
        (by_metadata({"present_match": True}, "nowhere"), False),
        (by_metadata({"double_match": {"exact": 4}}, "slots"), True),
        (by_metadata({"double_match": {"range": {"start": 1, "end": 4}}}, "slots"), False),
        (by_metadata({"list_match": {"one_of": {"string_match": {"exact": "b"}}}}, "tags"), True),
        (by_metadata({"or_match": {"value_matchers": [{"bool_match": True}, {"present_match": True}]}}, "rack"), True),
        ({"node_id": {"exact": "other"}, **by_metadata({"present_match": True}, "rack")}, False),
    ],
)
def test_node_matchers(matcher: dict[str, Any], expected: bool) -> None:
    message = json_format.ParseDict(matcher, node_pb2.NodeMatcher())
    assert matches(NODE, [message]) is expected
    assert matches(NODE, [node_pb2.NodeMatcher(node_id={"exact": "other"}), message]) is expected, "any of them"


def test_no_matcher_fits_all_and_an_unknown_one_is_refused() -> None:
    assert matches(NODE, [])
    with pytest.raises(MatcherError, match="matched by safe_regex"):
        matches(NODE, [node_pb2.NodeMatcher(node_id={"safe_regex": {"regex": "a"}})])


async def test_reflection_lists_and_describes_every_service() -> None:
    async with serving() as served:

        def ask() -> dict[str, list[str]]:
            with grpc.insecure_channel(served.address) as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                pool = descriptor_pool.DescriptorPool(database)
                found = {name: pool.FindServiceByName(name) for name in database.get_services()}
                return {name: [method.name for method in service.methods] for name, service in found.items()}

        described = await asyncio.to_thread(ask)
    assert set(described) == {
        "envoy.service.cluster.v3.ClusterDiscoveryService",
        "envoy.service.discovery.v3.AggregatedDiscoveryService",
        "envoy.service.endpoint.v3.EndpointDiscoveryService",
        "envoy.service.extension.v3.ExtensionConfigDiscoveryService",
        "envoy.service.listener.v3.ListenerDiscoveryService",
        "envoy.service.load_stats.v3.LoadReportingService",
        "envoy.service.route.v3.RouteDiscoveryService",
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert described[SERVICE] == ["StreamClientStatus", "FetchClientStatus"]


async def test_health_by_the_name_of_the_service() -> None:
    async with serving() as served:
        stub = health_pb2_grpc.HealthStub(served.channel)

        async def check(service: str) -> str:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

        ads = "envoy.service.discovery.v3.AggregatedDiscoveryService"
        assert [await check(name) for name in ("", ads, SERVICE)] == ["NOT_SERVING", "NOT_SERVING", "SERVING"]
        await served.health.ready()
        assert {await check(name) for name in ("", *FOR_ENVOYS, *FOR_OPERATORS)} == {"SERVING"}
        await served.health.end()
        assert {await check(name) for name in ("", ads, SERVICE)} == {"NOT_SERVING"}
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await check("nothing")
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_service_without_a_definition_is_not_listed() -> None:
    with pytest.raises(ValueError, match=r"no definition of a\.B"):
        enable_reflection(grpc.aio.server(), frozenset({"a.B"}))
