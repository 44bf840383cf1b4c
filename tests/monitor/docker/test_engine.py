"""`modelplane monitor --docker` on a real Docker Engine, with real containers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from registry.keys import ReadyKey
from registry.records import InstanceState, ReadyState
from tests.monitor.docker.containers import LABELS, READY, View, entrypoint, instance, monitor, name, server
from tests.support.docker_engine import IMAGE, ROOT, DockerEngine
from tests.support.etcd import Etcd
from tests.support.processes import ChildProcess, free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


def told(address: str) -> dict[tuple[str, str], float]:
    """The samples of a metrics page, by name and the one label's value."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {(one.name, "".join(one.labels.values())): one.value for family in families for one in family.samples}


async def test_follows_containers_through_their_life(
    etcd: Etcd, registry: View, engine: DockerEngine, tmp_path: Path
) -> None:
    """Waits for what the registry says after each thing that is done to a container; the lease outlasts the test."""
    first, second = engine.network("first"), engine.network("second")
    script = entrypoint(tmp_path)
    entry = {"entrypoint": ["/tf_serving_entrypoint.sh"], "environment": {"MODEL_NAME": "letters"}}
    labelled = engine.container(name("labelled"), server(9000, "digits"), first, labels=LABELS)
    engine.container(name("image"), [], first, image=IMAGE, binds=[f"{script}:/tf_serving_entrypoint.sh:ro"], **entry)
    engine.container(name("other"), server(8500, "other"), first)
    metrics = f"127.0.0.1:{free_port()}"
    with monitor(etcd, engine, f"--metrics-listen={metrics}") as process:
        await registry.until(("digits", instance("labelled")), ("letters", instance("image")))
        both = await asyncio.to_thread(told, metrics)
        assert both["modelplane_monitor_lease_held", ""] == 2
        assert both["modelplane_monitor_versions", "READY"] == 2

        engine.api.pause(labelled)
        await registry.until(("letters", instance("image")), timeout=3)
        record = await registry.instance(instance("labelled"))
        assert record is not None
        assert (record.state, record.detail) == (InstanceState.UNREACHABLE, "its container is paused")
        engine.api.unpause(labelled)
        await registry.until(("digits", instance("labelled")), ("letters", instance("image")))

        before = await registry.address("digits", instance("labelled"))
        engine.api.connect_container_to_network(labelled, second)
        engine.api.disconnect_container_from_network(labelled, first)

        async def moved() -> bool:
            record = (await registry.endpoints()).get(("digits", instance("labelled")))
            return record is not None and record.state is READY and record.address != before

        await eventually(moved, "the address in the other network")

        engine.api.kill(labelled)
        await registry.until(("letters", instance("image")), timeout=5)

        async def forgotten() -> bool:
            return await registry.instance(instance("labelled")) is None

        # Its endpoint goes with the refused connection already; the engine's word of its end takes the rest.
        await eventually(forgotten, "the killed container's instance to go", timeout=5)
        engine.api.start(labelled)
        await registry.until(("digits", instance("labelled")), ("letters", instance("image")))
        engine.remove(labelled)
        await registry.until(("letters", instance("image")), timeout=5)

        async def one_is_left() -> bool:
            return (await asyncio.to_thread(told, metrics))["modelplane_monitor_lease_held", ""] == 1

        await eventually(one_is_left, "one lease to be left", timeout=5)
        one = await asyncio.to_thread(told, metrics)
        assert one["modelplane_monitor_versions", "READY"] == 1
        for sample, value in both.items():
            assert one[sample] >= value or not sample[0].endswith("_total"), f"{sample} went back"
        process.send(signal.SIGTERM)
        assert process.wait() == 0
        await registry.until(("letters", instance("image")))
        assert "Traceback" not in process.output


async def test_a_container_whose_health_check_fails_is_a_last_resort(
    etcd: Etcd, registry: View, engine: DockerEngine
) -> None:
    """Waits for Docker's health check to fail and to succeed again."""
    check = {"test": ["CMD", "/usr/bin/test", "!", "-e", "/tmp/sick"], "interval": 200_000_000, "retries": 1}
    container = engine.container(
        name("sick"), server(9000, "digits"), engine.network("n"), labels=LABELS, healthcheck=check
    )
    with monitor(etcd, engine):
        await registry.until(("digits", instance("sick")))

        async def is_now(state: ReadyState) -> bool:
            return await registry.state("digits", instance("sick")) is state

        engine.execute(container, "/usr/bin/touch", "/tmp/sick")
        await eventually(lambda: is_now(ReadyState.FAILING), "the endpoint to be FAILING")
        record = await registry.instance(instance("sick"))
        assert record is not None
        assert [condition.name for condition in record.conditions] == ["ContainerUnhealthy"]
        engine.execute(container, "/usr/bin/rm", "/tmp/sick")
        await eventually(lambda: is_now(READY), "the endpoint to be READY again")


async def test_a_container_is_drained_and_stopped_by_command(etcd: Etcd, registry: View, engine: DockerEngine) -> None:
    """Waits for the container's end after `modelplane drain --stop`, and for its return after `docker start`."""
    network = engine.network("n")
    one, two = (engine.container(name(it), server(9000, "digits"), network, labels=LABELS) for it in ("one", "two"))
    both = (("digits", instance("one")), ("digits", instance("two")))
    with monitor(etcd, engine, "--docker-at-exit=drain") as process:
        await registry.until(*both)
        command = [sys.executable, "-m", "modelplane", "drain", instance("one"), "--stop", f"--etcd={etcd.endpoint}"]
        # Without a control plane nobody can say that nothing is in flight.
        for flags, code in (((), 1), (("--force",), 4)):
            log = etcd.folder / f"drain-{code}.log"
            with ChildProcess([*command, *flags], log, {"PYTHONPATH": str(ROOT)}) as draining:
                assert await asyncio.to_thread(draining.wait) == code, draining.output
        await eventually(lambda: not engine.api.inspect_container(one)["State"]["Running"], "the container's end")
        await registry.until(both[1])
        engine.api.start(one)
        await registry.until(*both)
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
        await registry.until()
        assert all(engine.api.inspect_container(it)["State"]["Running"] for it in (one, two)), "they run on"


async def test_the_config_file_is_read_inside_the_container(
    etcd: Etcd, registry: View, engine: DockerEngine, tmp_path: Path
) -> None:
    """Waits for what the file names; the server itself has more."""
    config = tmp_path / "models.config"
    config.write_text('model_config_list { config { name: "letters" base_path: "/m" } }')
    command = [*server(9000, "digits,letters"), "--model_config_file=/models.config"]
    labels = {"modelplane.enable": "true"}
    engine.container(name("file"), command, engine.network("n"), labels=labels, binds=[f"{config}:/models.config:ro"])
    with monitor(etcd, engine):
        await registry.until(("letters", instance("file")))


async def test_the_engine_goes_and_comes(etcd: Etcd, registry: View, engine: DockerEngine) -> None:
    """Waits for the monitor's word that the engine is away and back, and for what the registry says after it."""
    if not engine.own:
        pytest.skip("an engine that is not the tests' own is not restarted")
    engine.live_restore(True)
    network = engine.network("n")
    always = {"restart_policy": {"Name": "always"}}
    stays = engine.container(name("stays"), server(9000, "digits"), network, labels=LABELS, host=always)
    ends = engine.container(name("ends"), server(9000, "digits"), network, labels=LABELS)
    key = registry.keys.make(ReadyKey("digits", 1, instance("stays")))
    with monitor(etcd, engine) as process:
        await registry.until(("digits", instance("stays")), ("digits", instance("ends")))
        before = await registry.client.get(key)
        pid = engine.api.inspect_container(ends)["State"]["Pid"]

        await asyncio.to_thread(engine.stop)
        await eventually(lambda: "is away, its containers stay watched" in process.output, "the news")
        os.kill(pid, signal.SIGKILL)
        await registry.until(("digits", instance("stays")))
        assert await registry.instance(instance("ends")) is not None, "the engine alone knows whether it is gone"
        await asyncio.to_thread(engine.run)
        await eventually(lambda: "the Docker engine is back" in process.output, "the news")

        async def gone() -> bool:
            return await registry.instance(instance("ends")) is None

        await eventually(gone, "the end of what ended meanwhile")
        late = engine.container(name("late"), server(9000, "digits"), network, labels=LABELS)
        await registry.until(("digits", instance("stays")), ("digits", instance("late")))
        assert await registry.client.get(key) == before, "nothing was written of one that was there all the time"

        engine.live_restore(False)
        run = engine.api.inspect_container(stays)["State"]["StartedAt"]
        await asyncio.to_thread(engine.stop)
        await asyncio.to_thread(engine.run)
        await eventually(lambda: process.output.count("the Docker engine is back") == 2, "the news")
        await registry.until(("digits", instance("stays")))
        assert engine.api.inspect_container(stays)["State"]["StartedAt"] != run, "it was started again"
        assert not engine.api.inspect_container(late)["State"]["Running"]
