"""The whole monitor against a real etcd and a real gRPC server whose answers the test decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
import pytest

from monitor import address
from monitor.config import MonitorConfig
from monitor.errors import MonitorError
from monitor.pb import tfs_pb2 as tfs
from monitor.service import run
from monitor.watch import MOST_PROBES
from registry.etcd import EtcdConfig
from registry.keys import InstanceKey, ReadyKey
from registry.records import (
    InstanceRecord,
    InstanceState,
    PlaneRecord,
    Proof,
    ReadyRecord,
    ReadyState,
    Servable,
    ServableState,
    decode_ready,
    encode_instance,
    encode_ready,
)
from tests.monitor.registry_view import RegistryView
from tests.monitor.scripted_server import Reply, ScriptedServer, hang
from tests.support.etcd import Etcd
from tests.support.following import following
from tests.support.processes import ChildProcess, free_port
from tests.support.waiting import eventually

AVAILABLE, LOADING, END = ServableState.AVAILABLE, ServableState.LOADING, ServableState.END
READY, DRAINING = ReadyState.READY, ReadyState.DRAINING
ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def attached(
    etcd: Etcd, port: int, config: MonitorConfig | None = None, instance: str | None = "i"
) -> AsyncIterator[asyncio.Task[int]]:
    config = replace(
        config or MonitorConfig(model=("m",)),
        target=f"127.0.0.1:{port}",
        instance=instance,
        lease_ttl=2.0,
        etcd=EtcdConfig(endpoints=(etcd.endpoint,)),
    )
    task = asyncio.create_task(run(config))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextmanager
def process(etcd: Etcd, *arguments: str) -> Iterator[ChildProcess]:
    """The real command, in a process of its own."""
    command = [sys.executable, "-m", "modelplane", "monitor", f"--etcd={etcd.endpoint}", "--instance=i", *arguments]
    with ChildProcess(command, etcd.folder / "monitor.log", {"PYTHONPATH": str(ROOT)}) as child:
        yield child


def owned(port: int, models: str = "m") -> tuple[str, ...]:
    flags = (f"--port={port}", f"--model_name={models}", "--model_base_path=/nowhere")
    return ("--", sys.executable, "-m", "tests.monitor.scripted_server", *flags)


async def until_ready(registry: RegistryView, *servables: tuple[str, int], timeout: float = 30.0) -> None:
    wanted = dict.fromkeys(servables, READY)

    async def ready() -> bool:
        found = await registry.ready()
        assert found == wanted
        return True

    await eventually(ready, f"{servables} ready", timeout)


@pytest.mark.parametrize("instance", ["i", None])
async def test_a_server_whose_address_changes_is_registered_anew(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, instance: str | None
) -> None:
    """A network that was taken away and given back may come with another address; here it is a name's."""
    loop = asyncio.get_running_loop()
    real, place = loop.getaddrinfo, ["127.0.0.2"]

    async def getaddrinfo(host: str, *args: object, **kwargs: object) -> object:
        return await real(place[0] if host == "tfs" else host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    async with attached(etcd, server.port, MonitorConfig(model=("m",), advertise_address="tfs"), instance):
        for place[0] in ("127.0.0.2", "127.0.0.3", "127.0.0.2"):
            await eventually(partial(_registered_at, registry, place[0]), f"registered at {place[0]}")
        claims = await registry.client.list(registry.keys.claims)
        assert len(claims.entries) == 1
    assert await registry.empty()


async def _registered_at(registry: RegistryView, address: str) -> bool:
    records = await registry.records()
    assert {(m, v): (one.address, one.state) for (m, v), one in records.items()} == {("m", 1): (address, READY)}
    return True


async def test_an_owned_server_outlives_a_change_of_its_address(
    etcd: Etcd, registry: RegistryView, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own = ["127.0.0.2"]
    monkeypatch.setattr(address, "is_here", lambda one: one == own[0])
    monkeypatch.setattr(address, "source_address", lambda host, port: own[0])
    config = MonitorConfig(lease_ttl=2.0, etcd=EtcdConfig(endpoints=(etcd.endpoint,)))
    command = owned(free_port())[1:]
    task = asyncio.create_task(run(config, command))
    try:
        for own[0] in ("127.0.0.2", "127.0.0.3"):
            await eventually(partial(_registered_at, registry, own[0]), f"registered at {own[0]}")
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert len([record for record in caplog.records if ", process " in record.getMessage()]) == 1
    assert await registry.empty()


async def test_registers_what_answered_and_leaves_nothing_behind(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    config = MonitorConfig(model=("m",), rest_port=8501, zone="z", capacity=3)
    async with attached(etcd, server.port, config):
        await until_ready(registry, ("m", 1))
        record = (await registry.records())["m", 1]
        assert (record.address, record.grpc_port, record.rest_port) == ("127.0.0.1", server.port, 8501)
        assert (record.zone, record.capacity, record.several_versions) == ("z", 3, False)
        instance = await registry.instance("i")
        assert instance is not None
        assert instance.state is InstanceState.SERVING
        assert [(s.model, s.version, s.proof) for s in instance.servables] == [("m", 1, Proof.PROVED)]
        server.models["m"] = {2: LOADING, 1: AVAILABLE}
        await eventually(lambda: _has(registry, ("m", 2), ReadyState.LOADING), "version 2 announced")
        server.models["m"] = {2: AVAILABLE, 1: END}
        await until_ready(registry, ("m", 2))
    assert await registry.empty()


async def _has(registry: RegistryView, servable: tuple[str, int], state: ReadyState | None) -> bool:
    return (await registry.ready()).get(servable) is state


async def test_polling_writes_nothing_while_nothing_changes(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    async with attached(etcd, server.port):
        await until_ready(registry, ("m", 1))
        revision, seen = await registry.revision(), len(server.requests("GetModelStatus"))
        await eventually(lambda: len(server.requests("GetModelStatus")) > seen + 10, "ten more polls")
        assert await registry.revision() == revision


async def test_a_broken_model_is_not_registered_until_it_answers(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    broken = True

    async def predict(body: bytes) -> Reply:
        name = tfs.PredictRequest.FromString(body).model_spec.name
        refused = (grpc.StatusCode.FAILED_PRECONDITION, "Could not find variable b")
        return refused if broken and name == "broken" else b""

    server.predict = predict
    server.models["broken"] = {1: AVAILABLE}
    async with attached(etcd, server.port, MonitorConfig(model=("m", "broken"))):

        async def said() -> bool:
            instance = await registry.instance("i")
            assert instance is not None
            found = {s.model: (s.proof, s.proof_detail) for s in instance.servables}
            return found.get("broken") == (Proof.FAILED, "FAILED_PRECONDITION: Could not find variable b")

        await eventually(said, "the record to say why")
        await eventually(lambda: _has(registry, ("m", 1), READY), "the other model ready")
        assert await _has(registry, ("broken", 1), ReadyState.LOADING), "known, but no endpoint"
        broken = False
        await until_ready(registry, ("m", 1), ("broken", 1))


async def test_one_models_hanging_calls_delay_no_other(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    plain = server._status

    async def status(body: bytes) -> Reply:
        if tfs.GetModelStatusRequest.FromString(body).model_spec.name == "slow":
            return await hang(body)
        return plain(body)

    async def predict(body: bytes) -> Reply:
        return await hang(body) if tfs.PredictRequest.FromString(body).model_spec.name in stuck else b""

    server.status, server.predict = status, predict
    # More than may be asked at once.
    stuck = tuple(f"stuck-{number}" for number in range(MOST_PROBES + 8))
    server.models |= {name: {1: AVAILABLE} for name in stuck}
    # Deadlines longer than this test waits: whoever queues behind these calls is too late.
    config = MonitorConfig(model=(*stuck, "m", "slow"), poll_deadline=60.0, probe_deadline=60.0)
    async with attached(etcd, server.port, config):
        await eventually(lambda: _has(registry, ("m", 1), READY), "the healthy model", timeout=20.0)
        server.models["m"] = {2: AVAILABLE, 1: END}
        await eventually(lambda: _has(registry, ("m", 2), READY), "its next version", timeout=20.0)


async def test_an_unreachable_server_leaves_and_returns(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    async with attached(etcd, server.port):
        await until_ready(registry, ("m", 1))
        await server.stop()
        await until_ready(registry)
        instance = await registry.instance("i")
        assert instance is not None
        assert (instance.state, instance.detail) == (InstanceState.UNREACHABLE, "UNAVAILABLE: Connection refused")
        await server.start()
        await until_ready(registry, ("m", 1))


async def test_etcd_killed_and_restarted_empty(etcd: Etcd, registry: RegistryView, server: ScriptedServer) -> None:
    async with attached(etcd, server.port):
        await until_ready(registry, ("m", 1))
        etcd.kill()
        etcd.restart(empty=True)
        await until_ready(registry, ("m", 1), timeout=2.0 + 3.0)


async def test_the_config_file_is_watched_and_a_broken_one_is_said_so(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer, tmp_path: Path
) -> None:
    file = tmp_path / "models.config"
    file.write_text("model_config_list { config { name: 'm' model_version_policy { all {} } } }")
    server.models["n"] = {5: AVAILABLE}
    async with attached(etcd, server.port, MonitorConfig(model_config_file=file)):
        await until_ready(registry, ("m", 1))
        assert (await registry.records())["m", 1].several_versions is True
        file.write_text("model_config_list {")

        async def said() -> bool:
            instance = await registry.instance("i")
            return instance is not None and str(file) in instance.detail

        await eventually(said, "the record to tell of the broken file")
        await until_ready(registry, ("m", 1))
        file.write_text("model_config_list { config { name: 'n' } }")
        # The server still has m, whatever its file says.
        await until_ready(registry, ("m", 1), ("n", 5))
        server.models["m"] = {1: END}
        await until_ready(registry, ("n", 5))


async def test_no_model_at_all_is_no_trouble(etcd: Etcd, registry: RegistryView, tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text("model_config_list {}")
    async with ScriptedServer() as server, attached(etcd, server.port, MonitorConfig(model_config_file=file)):

        async def serving() -> bool:
            instance = await registry.instance("i")
            return instance is not None and instance.state is InstanceState.SERVING

        await eventually(serving, "an instance without models")


async def test_sigterm_drains_and_leaves_the_server_alone(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    await registry.plane("p", PlaneRecord(1, envoys=1))
    with process(etcd, f"--target=127.0.0.1:{server.port}", "--model=m") as monitor:
        await until_ready(registry, ("m", 1))
        monitor.send(signal.SIGTERM)
        await eventually(lambda: _has(registry, ("m", 1), DRAINING), "DRAINING")
        revision = await registry.revision()
        # The log of progress is the proof that it waits: nothing else can be seen of a monitor that does nothing.
        await eventually(lambda: "its 1 Envoy is at revision 1 of" in monitor.output, "progress")
        await registry.plane("p", PlaneRecord(revision, envoys=1, draining={"i": 2}))
        await eventually(lambda: "waiting for control plane p: 2 requests in flight" in monitor.output, "progress")
        assert monitor.alive()
        assert await _has(registry, ("m", 1), DRAINING)
        await registry.plane("p", PlaneRecord(revision, envoys=1, draining={"i": 0}))
        await eventually(lambda: not monitor.alive(), "the monitor's end", timeout=15.0)
        assert monitor.wait() == 0
        assert "instance i: drained in" in monitor.output
    await registry.plane("p", None)
    assert await registry.empty()
    server.models["m"] = {}
    assert server.requests("GetModelStatus"), "and the server is still there to be asked"


async def test_an_owned_server_is_stopped_only_after_the_drain(etcd: Etcd, registry: RegistryView) -> None:
    port = free_port()
    await registry.plane("p", PlaneRecord(1, envoys=1))
    with process(etcd, *owned(port)) as monitor:
        await until_ready(registry, ("m", 1))
        assert "scripted server is up" in monitor.output, "its output passes through"
        monitor.send(signal.SIGINT)
        await eventually(lambda: "waiting for control plane p" in monitor.output, "progress")
        assert _listens(port)
        await registry.plane("p", PlaneRecord(await registry.revision(), envoys=1, draining={"i": 0}))
        await eventually(lambda: not monitor.alive(), "the monitor's end", timeout=15.0)
        assert monitor.wait() == 0
    assert not _listens(port)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_second_signal_hastens(etcd: Etcd, registry: RegistryView) -> None:
    port = free_port()
    await registry.plane("p", PlaneRecord(1, envoys=1))
    with process(etcd, "--drain-deadline=600", *owned(port)) as monitor:
        await until_ready(registry, ("m", 1))
        monitor.send(signal.SIGTERM)
        await eventually(lambda: "waiting for control plane p" in monitor.output, "progress")
        monitor.send(signal.SIGTERM)
        await eventually(lambda: not monitor.alive(), "the monitor's end", timeout=15.0)
        assert monitor.wait() == 0
        assert "asked not to wait; still waited for: control plane p" in monitor.output
    assert not _listens(port)
    assert await _has(registry, ("m", 1), None)


@pytest.mark.parametrize("fault", ["a plane that never converges", "etcd frozen"])
async def test_a_drain_is_bounded(etcd: Etcd, registry: RegistryView, fault: str) -> None:
    await registry.plane("p", PlaneRecord(1, envoys=1))
    with process(etcd, "--drain-deadline=1.5", *owned(free_port())) as monitor:
        await until_ready(registry, ("m", 1))
        if fault == "etcd frozen":
            etcd.freeze()
        monitor.send(signal.SIGTERM)
        await eventually(lambda: not monitor.alive(), "the monitor's end", timeout=10.0)
        etcd.thaw()
        assert monitor.wait() == 0
        assert "not drained after 1.5 s; still waited for: " in monitor.output


def _owned_process(monitor: ChildProcess) -> int:
    """Of the server, as the monitor's log tells it."""
    line = next(line for line in monitor.output.splitlines() if "started" in line and ", process " in line)
    return int(line.rpartition(" ")[2])


async def test_a_killed_monitor_leaves_its_server_serving(etcd: Etcd, registry: RegistryView) -> None:
    port = free_port()
    with process(etcd, "--lease-ttl=2", *owned(port)) as monitor:
        await until_ready(registry, ("m", 1))
        server = _owned_process(monitor)
        try:
            monitor.kill()
            await eventually(registry.empty, "the lease's end", timeout=10.0)
            assert _listens(port)
        finally:
            os.kill(server, signal.SIGKILL)


async def _leave_behind(registry: RegistryView, port: int, *versions: int) -> None:
    """What a monitor that was killed leaves, as long as its lease lasts: version 7, or these, ready on this port."""
    versions = versions or (7,)
    servables = tuple(Servable("m", version, AVAILABLE, proof=Proof.PROVED) for version in versions)
    instance = InstanceRecord("127.0.0.1", port, state=InstanceState.SERVING, servables=servables)
    await registry.client.put(registry.keys.make(InstanceKey("i")), encode_instance(instance))
    record = encode_ready(ReadyRecord(READY, "127.0.0.1", port))
    for version in versions:
        await registry.client.put(registry.keys.make(ReadyKey("m", version, "i")), record)


@pytest.mark.parametrize("moved", [False, True])
async def test_a_new_server_does_not_inherit_the_old_ones_keys(
    etcd: Etcd, registry: RegistryView, *, moved: bool
) -> None:
    port = free_port()
    await _leave_behind(registry, free_port() if moved else port)
    with process(etcd, *owned(port)):
        await until_ready(registry, ("m", 1))


async def test_a_server_that_went_on_keeps_its_keys_when_its_monitor_returns(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    """One whose proof takes longer than the predecessor's lease could last, and one that the server has let go."""
    proceed = asyncio.Event()

    async def predict(_: bytes) -> Reply:
        await proceed.wait()
        return b""

    server.predict, server.models["m"] = predict, {7: AVAILABLE}
    await _leave_behind(registry, server.port, 6, 7)
    key = registry.keys.make(ReadyKey("m", 7, "i"))
    async with following(registry.client, registry.keys.ready) as followed, attached(etcd, server.port):
        await until_ready(registry, ("m", 7))
        entry = await registry.client.get(key)
        assert entry is not None
        assert entry.lease, "taken over"
        proceed.set()

        async def proved() -> bool:
            instance = await registry.instance("i")
            return instance is not None and [s.proof for s in instance.servables] == [Proof.PROVED]

        await eventually(proved, "its proof")
        values = [changes.puts[key] for changes in followed.changes if key in changes.puts]
        assert {decode_ready(value).state for value in values} == {READY}
        assert not [changes for changes in followed.changes if key in changes.deletes]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 137), (signal.SIGTERM, 143)])
async def test_an_owned_server_that_ends_takes_its_keys_along_at_once(
    etcd: Etcd, registry: RegistryView, number: signal.Signals, code: int
) -> None:
    with process(etcd, "--lease-ttl=600", *owned(free_port())) as monitor:
        await until_ready(registry, ("m", 1))
        os.kill(_owned_process(monitor), number)
        await eventually(registry.empty, "all keys gone", timeout=15.0)
        await eventually(lambda: not monitor.alive(), "the monitor's end", timeout=15.0)
        assert monitor.wait() == code
        assert f"was ended by {number.name}" in monitor.output


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["/bin/sh", "-c", "exit 3"], 3, ""),
        (["no-such-command"], 127, "no-such-command: command not found"),
        (["/"], 126, "/: can't be executed"),
    ],
    ids=["exits", "not found", "not executable"],
)
async def test_exit_codes(etcd: Etcd, command: list[str], code: int, message: str) -> None:
    with process(etcd, "--model=m", f"--target=127.0.0.1:{free_port()}", "--", *command) as monitor:
        await eventually(lambda: not monitor.alive(), "the monitor's end", timeout=10.0)
        assert monitor.wait() == code
        assert message in monitor.output
        assert "Traceback" not in monitor.output


async def test_nothing_to_watch_is_the_users_mistake() -> None:
    with pytest.raises(MonitorError, match="nothing to watch"):
        await run(MonitorConfig())


async def test_a_port_that_another_server_has_is_not_taken_for_the_own_ones(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    """Else the other one would be proved and registered until the own one is seen to have ended."""
    async with following(registry.client, registry.keys.prefix) as followed:
        with process(etcd, *owned(server.port)) as monitor:
            await eventually(lambda: not monitor.alive(), "the monitor's end", timeout=20.0)
            assert monitor.wait() == 2
        said = f"port {server.port} is taken: something listens at 127.0.0.1:{server.port} already"
        assert said in monitor.output
        assert "Traceback" not in monitor.output
        assert ", process " not in monitor.output, "nothing was started"
        assert server.calls == []
        assert not [key for changes in followed.changes for key in changes.puts]


@pytest.mark.parametrize("told_to_end", [False, True])
async def test_a_port_that_a_server_is_just_leaving_is_waited_for(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer, *, told_to_end: bool
) -> None:
    with process(etcd, *owned(server.port)) as monitor:
        await eventually(lambda: "something listens at" in monitor.output, "the monitor to notice", timeout=15.0)
        if told_to_end:
            monitor.send(signal.SIGTERM)
            assert monitor.wait() == 0
        else:
            await server.stop()
            await until_ready(registry, ("m", 1))
            assert "is free now" in monitor.output
        assert server.calls == []
