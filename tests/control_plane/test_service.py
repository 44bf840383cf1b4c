"""The control plane's process: its HTTP port, its health service, its own record, its errors."""

from __future__ import annotations

import json
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import InstanceKey, Keyspace, ReadyKey
from registry.records import ReadyRecord, ReadyState, decode_plane, encode_ready
from tests.support.etcd import Etcd
from tests.support.processes import ChildProcess, free_port, wait_for_port
from tests.support.waiting import eventually


class Plane:
    """A control plane's process on free ports."""

    def __init__(self, folder: Path, etcd: str, *flags: str) -> None:
        self.xds_port, self.http_port = free_port(), free_port()
        self.child = ChildProcess(
            [
                *(sys.executable, "-m", "modelplane", "control-plane", "--etcd", etcd, "--replica", "p"),
                *("--xds-listen", f"127.0.0.1:{self.xds_port}", "--http-listen", f"127.0.0.1:{self.http_port}"),
                *("--log-format", "json", *flags),
            ],
            folder / "plane.log",
        )

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def plane(tmp_path: Path, etcd: Etcd) -> Iterator[Plane]:
    plane = Plane(tmp_path, etcd.endpoint, "--empty-registry-grace", "2")
    with plane.child:
        wait_for_port(plane.http_port, plane.child)
        yield plane


async def health(plane: Plane) -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plane.xds_port}") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return int(answer.status)


async def test_its_own_keys_are_back_at_once_after_an_operator_deleted_them(tmp_path: Path, etcd: Etcd) -> None:
    """A drain would find nobody to wait for meanwhile. The lease is so long that its own next look at the keys would
    come after minutes; waits for the record to claim convergence, and to be there again."""
    plane = Plane(tmp_path, etcd.endpoint, "--empty-registry-grace", "0", "--lease-ttl", "600")
    with plane.child:
        async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:

            async def settled() -> bool:
                entry = await client.get("/modelplane/planes/p")
                return entry is not None and decode_plane(entry.value).converged_revision > 0

            # The last that it writes of its own accord.
            await eventually(settled, "the replica's own record")
            await client.delete("/modelplane/planes/p")
            await eventually(settled, "the record to be back", 10)


async def test_health_metrics_and_a_clean_end(plane: Plane, etcd: Etcd) -> None:
    await eventually(lambda: "holds no instance" in plane.get("/readyz")[1], "the empty registry to be doubted")
    await eventually(lambda: plane.get("/readyz") == (200, "ok\n"), "the registry to be believed")
    assert plane.get("/healthz") == (200, "ok\n")
    assert plane.get("/nothing")[0] == 404
    assert "modelplane_registry_connected 1.0" in plane.get("/metrics")[1]
    assert await health(plane) == health_pb2.HealthCheckResponse.SERVING

    async with EtcdClient(EtcdConfig((etcd.endpoint,))) as client:

        async def own_record() -> bool:
            entry = await client.get("/modelplane/planes/p")
            record = {} if entry is None else json.loads(entry.value)
            return (record.get("envoys"), record.get("http")) == (0, f"127.0.0.1:{plane.http_port}")

        await eventually(own_record, "the replica's own record")
        ready = Keyspace().make(ReadyKey("m", 1, "i"))
        await client.put(ready, encode_ready(ReadyRecord(ReadyState.READY, "10.0.0.1", 8500)))
        clusters = 'modelplane_resources{type="CDS"}'
        await eventually(lambda: f"{clusters} 2.0" in plane.get("/metrics")[1], "the clusters of a model")
        await client.put(Keyspace().make(InstanceKey("i")), b"{}")
        await client.delete(ready)
        await eventually(lambda: f"{clusters} 0.0" in plane.get("/metrics")[1], "their end")
        plane.child.send(signal.SIGTERM)
        assert plane.child.wait() == 0
        assert await client.get("/modelplane/planes/p") is None
    lines = [json.loads(line) for line in plane.child.output.splitlines()]
    assert lines[-1]["message"] == "stopped"


async def test_not_ready_says_why(tmp_path: Path) -> None:
    plane = Plane(tmp_path, f"127.0.0.1:{free_port()}")
    with plane.child:
        wait_for_port(plane.http_port, plane.child)
        await eventually(lambda: "does not answer" in plane.get("/readyz")[1], "the reason")
        assert plane.get("/readyz")[0] == 503
        assert plane.get("/healthz")[0] == 200
        assert await health(plane) == health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("flag", ["--xds-listen", "--http-listen"])
def test_a_busy_port_is_one_line_with_the_mend(tmp_path: Path, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        plane = Plane(tmp_path, "127.0.0.1:1", flag, address)
        with plane.child:
            assert plane.child.wait() == 1
    assert "Traceback" not in plane.child.output
    (line,) = [line for line in plane.child.output.splitlines() if "error" in line]
    assert address in line
    assert flag in line


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--xds-listen", "nowhere"), "xds-listen"),
        (("--lease-ttl", "1"), "lease-ttl"),
        (("--etcd", "a/b"), "--etcd"),
        (("--max-request-bytes", "0"), "max-request-bytes"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, flags: tuple[str, ...], names: str) -> None:
    plane = Plane(tmp_path, "127.0.0.1:1", *flags)
    with plane.child:
        assert plane.child.wait() == 2
    assert "Traceback" not in plane.child.output
    assert names in plane.child.output.replace("_", "-")
