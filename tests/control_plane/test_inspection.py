"""The JSON pages, without a network: the loop's side is asked directly or from a thread."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from prometheus_client import CollectorRegistry

from control_plane.http import HttpServer
from control_plane.inspection import render
from control_plane.inspection.inside import Inside
from control_plane.inspection.loop import LoopBusyError, LoopGate
from control_plane.inspection.pages import Pages
from control_plane.resources.resource import CLUSTER, EXTENSION_CONFIG, Resource, pack
from control_plane.resources.settings import DataPlaneSettings
from control_plane.resources.translate import fleet_resources
from control_plane.xds.events import StreamStatus, TypeStatus
from control_plane.xds.quarantine import Blame
from control_plane.xds.server import XdsServer
from control_plane.xds.table import ResourceTable
from control_plane.xds.view import View
from tests.support.processes import free_port


def cluster(name: str, model: str = "") -> Resource:
    message = cluster_pb2.Cluster(name=name, alt_stat_name=model if model == "other" else "")
    return pack(name, message, model=model, requires=frozenset({"b", "a"}))


def pages(table: ResourceTable) -> Pages:
    inside = Inside("plane-0", "0.1.0", XdsServer(table))
    return Pages(inside, lambda read: read(), clock=lambda: 1_000_000.0)


def get(table: ResourceTable, path: str, **query: str) -> tuple[int, Any]:
    answer = pages(table).get(path, query)
    assert answer is not None, path
    body = b"".join(answer.chunks).decode()
    return answer.status.value, json.loads(body) if answer.content_type == "application/json" else body


@pytest.fixture
def table() -> ResourceTable:
    made = ResourceTable()
    made.update([cluster("b", "b"), cluster("a", "a"), cluster("@rest/a", "a")], [], 7)
    return made


def test_resources_of_one_type_by_name(table: ResourceTable) -> None:
    status, page = get(table, "/resources/CDS")
    assert status == 200
    assert {key: page[key] for key in ("replica", "view", "type", "type_url", "revision", "count")} == {
        "replica": "plane-0",
        "view": "envoy",
        "type": "CDS",
        "type_url": CLUSTER,
        "revision": 7,
        "count": 3,
    }
    assert [one["name"] for one in page["resources"]] == ["@rest/a", "a", "b"]
    assert page["resources"][1] == {
        "name": "a",
        "version": table.get(CLUSTER, "a").version,
        "model": "a",
        "requires": ["a", "b"],
        "resource": {"@type": CLUSTER, "name": "a"},
    }
    assert get(table, "/resources/cds", contents="0", model="b")[1]["resources"] == [
        {"name": "b", "version": table.get(CLUSTER, "b").version, "model": "b"}
    ]
    assert get(table, "/resources/RDS")[1]["resources"] == []


def test_one_resource_whose_name_holds_slashes(table: ResourceTable) -> None:
    status, page = get(table, "/resources/CDS/@rest/a")
    assert (status, page["name"], page["model"], page["revision"]) == (200, "@rest/a", "a", 7)


def test_the_types(table: ResourceTable) -> None:
    _, page = get(table, "/resources")
    assert {row["type"]: row["count"] for row in page["types"]} == {"LDS": 0, "RDS": 0, "CDS": 3, "EDS": 0, "ECDS": 0}


def test_the_other_view(table: ResourceTable) -> None:
    other = ResourceTable()
    other.update([cluster("lazy")], [], 9)
    pages_ = Pages(Inside("p", "0", XdsServer(table, grpc_view=View("grpc", other))), lambda read: read())
    answer = pages_.get("/resources/CDS", {"view": "grpc", "contents": "no"})
    assert answer is not None
    page = json.loads(b"".join(answer.chunks))
    assert (page["view"], page["revision"], [one["name"] for one in page["resources"]]) == ("grpc", 9, ["lazy"])


def test_what_is_quarantined(table: ResourceTable) -> None:
    good, bad, new = table.get(CLUSTER, "a"), cluster("a", "other"), cluster("new", "m")
    assert good is not None
    table.acknowledged(good, table.moment.generation)
    table.update([bad, new], [], 8)
    for one in (bad, new):
        table.quarantine(CLUSTER, one.name, one.version, Blame("edge-1", "ipv4:10.0.0.7:1", "name", "bad", 0.0))
    why = {"node": "edge-1", "peer": "ipv4:10.0.0.7:1", "field": "name", "message": "bad", "since_revision": 8}
    rows = get(table, "/quarantine")[1]["quarantined"]
    why["at"] = "1970-01-01T00:00:00.000Z"
    assert rows == [
        {
            "view": "envoy",
            "type": "CDS",
            "name": "new",
            "model": "m",
            "version": new.version,
            "last_good_version": None,
            **why,
        },
        {
            "view": "envoy",
            "type": "CDS",
            "name": "a",
            "model": "other",
            "version": bad.version,
            "last_good_version": good.version,
            **why,
        },
    ]
    _, page = get(table, "/resources/CDS/a")
    assert (page["version"], page["quarantined"]["version"]) == (good.version, bad.version)
    _, page = get(table, "/resources/CDS/new")
    assert "resource" not in page, "it is withheld"
    assert page["quarantined"]["resource"] == {"@type": CLUSTER, "name": "new"}


@pytest.mark.parametrize(
    ("path", "query", "message"),
    [
        ("/resources/XDS", {}, "no resource type 'XDS'; there are LDS, RDS, CDS, EDS, ECDS\n"),
        ("/resources/CDS/@rest/b", {}, "no CDS resource '@rest/b' among 3; close to it: @rest/a\n"),
        ("/resources/EDS/a", {}, "no EDS resource 'a' among 0\n"),
        ("/resources/CDS", {"view": "x"}, "no view 'x'; there are envoy\n"),
    ],
)
def test_what_is_not_there_says_what_is(table: ResourceTable, path: str, query: dict[str, str], message: str) -> None:
    assert get(table, path, **query) == (404, message)


@pytest.mark.parametrize("path", ["", "/", "x", "x/envoys", "/envoy", "/envoys/x", "/quarantine/x", "//envoys"])
def test_other_paths_are_not_ours(table: ResourceTable, path: str) -> None:
    assert pages(table).get(path, {}) is None


def test_what_this_control_plane_makes_is_shown_in_full() -> None:
    for one in fleet_resources({"m": 3}, DataPlaneSettings()):
        shown = render.resource(one)["resource"]
        assert shown["@type"] == one.type_url
        assert "error" not in shown
    assert (
        "typed_config"
        in next(
            render.resource(one) for one in fleet_resources({}, DataPlaneSettings()) if one.type_url == EXTENSION_CONFIG
        )["resource"]
    ), "field names are the proto's"


def test_what_holds_an_unknown_type_is_shown_as_bytes() -> None:
    shown = render.message(b"\x0a\x05x/y.z\x12\x01a")
    assert (shown["@type"], shown["value"]) == ("x/y.z", "YQ==")
    assert shown["error"]


def test_a_stream_as_json() -> None:
    type_status = TypeStatus(True, 0, 3, 4, 1, 1, 1, 1, 2, ("bad",), ("bad field",), "no such field", 9, 8, 7)
    status = StreamStatus("envoy-1", "edge", "ipv4:127.0.0.1:5", 40.0, 8, {CLUSTER: type_status}, client="envoy 1.40.0")
    shown = render.stream(status, age=2.0, now=1_000_000.0)
    assert shown["connected_since"] == "1970-01-12T13:46:38.000Z"
    assert (shown["node"], shown["cluster"], shown["connected_seconds"], shown["converged_revision"]) == (
        *("envoy-1", "edge"),
        *(2.0, 8),
    )
    assert [shown[key] for key in ("peer", "client", "view", "protocol", "service")] == [
        *("ipv4:127.0.0.1:5", "envoy 1.40.0"),
        *("envoy", "delta", "ADS"),
    ]
    assert shown["types"]["CDS"] == {
        "type_url": CLUSTER,
        "wildcard": True,
        "subscribed": 0,
        "responses": 3,
        "sent": 4,
        "removed": 1,
        "acked": 1,
        "nacked": 1,
        "unanswered": 1,
        "outstanding": 2,
        "sent_revision": 9,
        "acked_revision": 8,
        "nacked_revision": 7,
        "refused": [{"name": "bad", "message": "bad field"}],
        "last_error": "no such field",
    }


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_listing_is_json_with_one_element_a_line(count: int) -> None:
    text = b"".join(render.listing({"a": 1}, "rows", ({"n": n} for n in range(count)))).decode()
    assert json.loads(text) == {"a": 1, "rows": [{"n": n} for n in range(count)]}
    assert len(text.splitlines()) == (count + 2 if count else 1)


async def test_the_loop_answers_a_thread() -> None:
    gate, loop_thread = LoopGate(), threading.get_ident()
    assert await asyncio.to_thread(gate, threading.get_ident) == loop_thread

    def fail() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        await asyncio.to_thread(gate, fail)


async def test_a_loop_that_hangs_is_not_waited_for() -> None:
    gate, said, called = LoopGate(0.01), threading.Event(), []

    def ask() -> str:
        try:
            gate(lambda: called.append(1))
        except LoopBusyError as error:
            return str(error)
        finally:
            said.set()
        return ""

    asking = asyncio.create_task(asyncio.to_thread(ask))
    await asyncio.sleep(0)
    assert said.wait(10), "the loop stands still meanwhile"
    assert await asking == "the event loop has not answered for 0.01 s"
    assert called == [], "nobody waits for it any more"


def test_a_busy_loop_is_503(table: ResourceTable) -> None:
    def busy(read: object) -> Any:
        raise LoopBusyError("asleep")

    answer = Pages(Inside("p", "0", XdsServer(table)), busy).get("/envoys", {})
    assert answer is not None
    assert (answer.status.value, b"".join(answer.chunks)) == (503, b"this control plane is too busy: asleep\n")


def read(server: HttpServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_over_http(table: ResourceTable, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Pages):
        def _quarantine(self, query: object) -> Any:
            raise ZeroDivisionError

        def _types(self, view: str) -> Any:
            yield b"{"
            raise ZeroDivisionError

    made = Broken(Inside("plane-0", "0", XdsServer(table)), LoopGate())
    with HttpServer("127.0.0.1", free_port(), CollectorRegistry(), lambda: "", made) as server:
        status, body = await asyncio.to_thread(read, server, "/resources/CDS/%40rest%2Fa?view=envoy")
        assert (status, json.loads(body)["name"]) == (200, "@rest/a")
        status, body = await asyncio.to_thread(read, server, "/resources/EDS/mod%C3%A8le")
        assert (status, body) == (404, "no EDS resource 'modèle' among 0\n")
        status, body = await asyncio.to_thread(read, server, "/nothing")
        assert (status, body) == (404, f"this port has /healthz, /readyz, /metrics, {Pages.PATHS}\n")
        status, body = await asyncio.to_thread(read, server, "/quarantine")
        assert (status, body) == (500, "this page can't be made; the control plane's log says why\n")
        assert await asyncio.to_thread(read, server, "/resources") == (200, "{"), "cut short, so no JSON"
    assert [record.getMessage() for record in caplog.records] == [
        "HTTP page /quarantine can't be made",
        "HTTP page /resources can't be made",
    ]
