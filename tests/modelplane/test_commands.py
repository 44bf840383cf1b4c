"""`get envoys`, `xds dump` and `describe model` in a process of their own, against real control planes and an Envoy."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from envoy.service.status.v3 import csds_pb2, csds_pb2_grpc
from prometheus_client import CollectorRegistry

from control_plane.envoy_files import render_bootstrap
from control_plane.http import HttpServer
from control_plane.inspection.inside import Inside
from control_plane.inspection.loop import LoopGate
from control_plane.inspection.pages import Pages
from modelplane.planes import Plane, fetch
from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import InstanceKey, Keyspace, PlaneKey, ReadyKey
from registry.records import (
    InstanceRecord,
    InstanceState,
    PlaneRecord,
    Proof,
    ReadyRecord,
    ReadyState,
    Servable,
    ServableState,
    encode_instance,
    encode_plane,
    encode_ready,
)
from tests.support.envoy import Envoy
from tests.support.etcd import Etcd
from tests.support.processes import ChildProcess, free_port
from tests.support.stack import Stack
from tests.support.waiting import eventually
from tests.xds.world import assignment, eds_cluster, plane_and_envoy

pytestmark = pytest.mark.scenario

KEYS = Keyspace()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "modelplane", *arguments]


async def modelplane(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = await asyncio.to_thread(
        subprocess.run, command(*arguments), capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest_asyncio.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """One control plane, one Envoy, and one instance that is written into the registry by hand."""
    stack = Stack(tmp_path)
    try:
        async with EtcdClient(EtcdConfig((stack.etcd.endpoint,))) as client:
            servables = (
                Servable("digits", 2, ServableState.AVAILABLE, proof=Proof.PROVED),
                Servable("digits", 3, ServableState.END, error="no saved_model.pb"),
            )
            record = InstanceRecord("127.0.0.1", 21000, 22000, state=InstanceState.SERVING, servables=servables)
            await client.put(KEYS.make(InstanceKey("tfs-0")), encode_instance(record))
            ready = encode_ready(ReadyRecord(ReadyState.READY, "127.0.0.1", 21000, 22000))
            await client.put(KEYS.make(ReadyKey("digits", 2, "tfs-0")), ready)
        await stack.envoy.ready()
        yield stack
    finally:
        stack.close()


async def test_a_fleet_is_looked_into(stack: Stack) -> None:
    """Waits until the Envoy has acknowledged a model, then for each command's end; a second control plane that is
    registered and dead, and one that is older than its HTTP field."""
    here = ("--etcd", stack.etcd.endpoint)

    async def settled() -> bool:
        plane = await fetch(Plane("plane-0", f"127.0.0.1:{stack.http_port}"), "/envoys", 10.0)
        (envoy,) = plane["envoys"]
        types = envoy["types"]
        assert set(types) == {"LDS", "CDS", "EDS", "ECDS"}
        assert (envoy["client"], envoy["view"], envoy["service"]) == ("envoy 1.40.0", "envoy", "ADS")
        assert all(one["acked_revision"] == one["sent_revision"] > 0 for one in types.values())
        # The replica's own, too: it claims nothing while it may still be waiting for other Envoys to come back.
        converged = {envoy["converged_revision"], plane["converged_revision"]} == {plane["revision"]}
        return converged and bool(types["CDS"]["sent"] >= 4)

    await eventually(settled, "the Envoy to have everything")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.xds_port}") as channel:
        stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(channel)
        (config,) = (await stub.FetchClientStatus(csds_pb2.ClientStatusRequest())).config
    assert (config.node.id, config.node.user_agent_name) == ("modelplane-envoy", "envoy")
    assert len(config.generic_xds_configs) == 2 + 4 + 4 + 2
    assert {one.config_status for one in config.generic_xds_configs} == {csds_pb2.SYNCED}
    table, document = await asyncio.gather(
        modelplane("get", "envoys", *here), modelplane("get", "envoys", "-o", "json", *here)
    )
    (told,) = json.loads(document.stdout)["controlPlanes"]
    assert (told["replica"], told["http"]) == ("plane-0", f"127.0.0.1:{stack.http_port}")
    (envoy,) = told["envoys"]
    assert (envoy["node"], envoy["convergedRevision"]) == ("modelplane-envoy", told["convergedRevision"])
    assert envoy["types"]["CDS"]["ackedRevision"] == envoy["types"]["CDS"]["sentRevision"]
    assert (table.returncode, table.stderr) == (0, "")
    first, second = table.stdout.splitlines()
    assert first.split() == ["ENVOY", "CLIENT", "CONTROL", "PLANE", "SINCE", "STATE"]
    assert second.startswith("modelplane-envoy  envoy 1.40.0  plane-0 ")
    assert second.endswith("has everything")

    names, one, unknown, described, no_model = await asyncio.gather(
        modelplane("xds", "dump", "clusters", "-o", "names", *here),
        modelplane("xds", "dump", "eds", "@rest/digits@2", "--control-plane", f"127.0.0.1:{stack.http_port}"),
        modelplane("xds", "dump", "EDS", "digits@1", *here),
        modelplane("describe", "model", "digits", *here),
        modelplane("describe", "model", "digit", *here),
    )
    assert names.stdout.split() == ["@rest/digits", "@rest/digits@2", "digits", "digits@2"]
    resource = json.loads(one.stdout)["resource"]
    address = resource["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    assert address == {"address": "127.0.0.1", "port_value": 22000}
    assert unknown.returncode == 1
    assert unknown.stderr.startswith(
        "modelplane xds: error: plane-0: no EDS resource 'digits@1' among 4; close to it: "
    )
    assert described.returncode == 0
    for text in ("gets version 2.", "version 3 on tfs-0: no saved_model.pb", "1 connected: all acknowledged up to"):
        assert text in described.stdout
    assert no_model.returncode == 1
    assert no_model.stderr == (
        "modelplane describe: error: the registry knows no model 'digit'; did you mean digits?\n"
    )

    async with EtcdClient(EtcdConfig((stack.etcd.endpoint,))) as client:
        await client.put(KEYS.make(PlaneKey("a-dead")), encode_plane(PlaneRecord(1, http=f"127.0.0.1:{free_port()}")))
        await client.put(KEYS.make(PlaneKey("b-old")), b'{"convergedRevision":1}')
    partly, dumped = await asyncio.gather(modelplane("get", "envoys", *here), modelplane("xds", "dump", *here))
    assert partly.returncode == 1, "Envoys may be missing from the list"
    lines = partly.stdout.splitlines()
    assert lines[1].startswith("modelplane-envoy")
    assert lines[-2].endswith(": connection refused")
    assert lines[-1].startswith("b-old: its record in the registry does not say where its HTTP port is")
    everything = json.loads(dumped.stdout)
    assert {name: page["count"] for name, page in everything.items()} == {
        "LDS": 2,
        "RDS": 0,
        "CDS": 4,
        "EDS": 4,
        "ECDS": 2,
    }
    assert {page["replica"] for page in everything.values()} == {"plane-0"}


async def test_an_envoy_whose_ports_are_taken_is_told_of(stack: Stack, tmp_path: Path) -> None:
    """Waits until a second Envoy, which can't listen where the first one does, has refused its listeners."""
    admin = free_port()
    bootstrap = render_bootstrap((f"127.0.0.1:{stack.xds_port}",), admin=f"127.0.0.1:{admin}", node_id="second")
    envoy = Envoy(tmp_path, bootstrap, admin, name="second")
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.xds_port}") as channel:
            stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(channel)
            asked = csds_pb2.ClientStatusRequest(node_matchers=[{"node_id": {"exact": "second"}}])

            async def refused() -> list[csds_pb2.ClientConfig.GenericXdsConfig]:
                found = (await stub.FetchClientStatus(asked)).config
                configs = [one for config in found for one in config.generic_xds_configs]
                return [one for one in configs if one.config_status == csds_pb2.ERROR]

            await eventually(lambda: both(refused), "both listeners to be refused")
            for one in await refused():
                assert "Address already in use" in one.error_state.details
                assert one.error_state.version_info
        done = await modelplane("get", "envoys", "--etcd", stack.etcd.endpoint)
        states = {line.split()[0]: line for line in done.stdout.splitlines()[1:3]}
        assert states["modelplane-envoy"].endswith("has everything")
        assert "refused LDS 2" in states["second"]
        assert re.search("^second: LDS grpc.*: .*Address already in use", done.stdout, re.M), done.stdout
        nothing = await modelplane("get", "quarantine", "--etcd", stack.etcd.endpoint)
        assert nothing.stdout == "Nothing is quarantined.\n", "the other Envoy has taken them"
    finally:
        envoy.close()


async def both(refused: Callable[[], Awaitable[list[object]]]) -> bool:
    return len(await refused()) == 2


async def test_a_resource_that_an_envoy_refuses_is_told_of(tmp_path: Path, etcd: Etcd) -> None:
    """Waits until an Envoy has refused the first version of one cluster, and the second one of another, of a control
    plane whose resources are made by hand, since it makes none that Envoy refuses; then for each command's end."""
    async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:
        record = InstanceRecord("127.0.0.1", 21000, state=InstanceState.SERVING)
        await client.put(KEYS.make(InstanceKey("tfs-0")), encode_instance(record))
        ready = encode_ready(ReadyRecord(ReadyState.READY, "127.0.0.1", 21000))
        for model in ("ill", "well"):
            await client.put(KEYS.make(ReadyKey(model, 1, "tfs-0")), ready)
    names = ("ill", "well")
    first = [eds_cluster("ill", bad=True), eds_cluster("well"), *(assignment(name, 21000) for name in names)]
    async with plane_and_envoy(tmp_path, *first) as (plane, _):
        await eventually(lambda: plane.converged(plane.revision), "the first refusal")
        plane.change(eds_cluster("well", bad=True))
        await eventually(lambda: len(plane.table.quarantined) == 2, "the second refusal")
        pages = Pages(Inside("plane-0", "0", plane.xds), LoopGate())
        port = free_port()
        here = ("--control-plane", f"127.0.0.1:{port}")
        with HttpServer("127.0.0.1", port, CollectorRegistry(), lambda: "", pages):
            ill, well, everything, envoys, dumped = await asyncio.gather(
                modelplane("describe", "model", "ill", "--etcd", etcd.endpoint, *here),
                modelplane("describe", "model", "well", "--etcd", etcd.endpoint, *here),
                modelplane("get", "quarantine", *here),
                modelplane("get", "envoys", *here),
                modelplane("xds", "dump", "CDS", "ill", *here),
            )
    good = eds_cluster("well").version
    for said, name in ((ill, "ill"), (well, "well")):
        assert said.returncode == 0
        assert re.search(rf"^CDS {name}, version {eds_cluster(name, bad=True).version}$", said.stdout, re.MULTILINE)
        assert re.search(
            r"^  refused by  modelplane-envoy at ipv4:127\.0\.0\.1:\d+, revision \d$", said.stdout, re.MULTILINE
        )
        assert re.search(r"^  message     .+", said.stdout, re.MULTILINE)
        assert f"CDS {name} of model {name}" in everything.stdout
    assert "  now         it is sent to nobody" in ill.stdout
    assert f"  now         every client is sent its last good version, {good}" in well.stdout
    assert re.search(r"refused CDS \d", envoys.stdout)
    page = json.loads(dumped.stdout)
    assert "resource" not in page
    assert page["quarantined"]["resource"]["name"] == "ill"


async def test_ctrl_c_ends_a_command_that_waits(tmp_path: Path) -> None:
    """Waits until it has connected to a control plane that says nothing, then for its end after SIGINT."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(30)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        arguments = ("get", "envoys", "--control-plane", address, "--timeout", "60")
        with ChildProcess(command(*arguments), tmp_path / "get.log") as child:
            connection, _ = await asyncio.to_thread(silent.accept)
            with connection:
                child.send(signal.SIGINT)
                assert child.wait(20) == 130
        assert child.output == ""


async def test_a_control_plane_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    """Waits for the command's end."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = await modelplane("get", "envoys", "--control-plane", address, "--timeout", "0.2")
    assert done.returncode == 1
    assert done.stdout == f"CONTROL PLANES THAT DO NOT ANSWER\n{address}: no answer for 0.2 s\n"


async def test_status_says_that_no_control_plane_answers_or_none_is_there(etcd: Etcd) -> None:
    """Waits for the commands' ends."""
    alone = await modelplane("status", "--etcd", etcd.endpoint)
    assert (alone.returncode, alone.stdout.splitlines()[-1][:35]) == (0, "The registry names no control plane")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = await modelplane("status", "--etcd", etcd.endpoint, "--control-plane", address, "--timeout", "0.2")
    assert done.returncode == 0
    assert done.stdout.endswith(f"CONTROL PLANES THAT DO NOT ANSWER\n{address}: no answer for 0.2 s\n")
