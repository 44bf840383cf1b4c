"""Real monitors that claim one instance, stand still, or are started again and again; etcd is real, the server answers
what the test decides. Leases are short, so that a test waits seconds for their end."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monitor.claiming import LONGEST_WAIT, wait_before
from monitor.standstill import LONGEST, Standstill
from registry.claims import Claim, decode_claim, encode_claim
from registry.keys import ClaimKey, InstanceKey, ReadyKey
from registry.records import InstanceState, ReadyState, ServableState, decode_ready
from tests.monitor.registry_view import RegistryView
from tests.monitor.scripted_server import ScriptedServer
from tests.support.etcd import Etcd
from tests.support.following import following
from tests.support.processes import ChildProcess, free_port
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
AVAILABLE, READY = ServableState.AVAILABLE, ReadyState.READY
TTL = 2


@contextmanager
def monitor(etcd: Etcd, port: int, name: str, path: str = "", ttl: float = TTL) -> Iterator[ChildProcess]:
    """One that watches a server which runs already; `path` comes before this checkout on its PYTHONPATH."""
    command = [sys.executable, "-m", "modelplane", "monitor", f"--etcd={etcd.endpoint}", "--instance=i"]
    command += [f"--lease-ttl={ttl}", f"--target=127.0.0.1:{port}", "--model=m"]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, (path, str(ROOT))))}
    with ChildProcess(command, etcd.folder / f"{name}.log", environment) as child:
        yield child


async def claim(registry: RegistryView) -> Claim | None:
    entry = await registry.client.get(registry.keys.make(ClaimKey("i")))
    return decode_claim(entry.value) if entry is not None else None


async def until_ready(registry: RegistryView, port: int, pid: int | None = None, timeout: float = 20.0) -> None:
    async def ready() -> bool:
        records = await registry.records()
        assert {key: (record.state, record.grpc_port) for key, record in records.items()} == {("m", 1): (READY, port)}
        held = await claim(registry)
        return held is not None and pid in (None, held.pid)

    await eventually(ready, "the model to be ready", timeout)


async def test_the_newer_of_two_takes_over_without_a_gap_and_the_older_says_so_and_stops(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    with monitor(etcd, server.port, "older") as older:
        await until_ready(registry, server.port, older.pid)
        async with following(registry.client, registry.keys.ready) as followed:
            with monitor(etcd, server.port, "newer") as newer:
                await until_ready(registry, server.port, newer.pid)
                await eventually(lambda: not older.alive(), "the older one's end")
                assert older.wait() == 4
                assert f"superseded: the monitor on {socket.gethostname()} (pid {newer.pid}, since " in older.output
                assert "give each an --instance of its own" in older.output.splitlines()[-1]
                assert "Traceback" not in older.output
                # The older one's lease has run out or will soon; by its end nothing may hang on it any more.
                key = registry.keys.make(ReadyKey("m", 1, "i"))
                found = [await registry.client.get(name) for name in (key, registry.keys.make(ClaimKey("i")))]
                assert len({one.lease for one in found if one is not None}) == 1
                assert newer.alive()
            states = [decode_ready(value).state for changes in followed.changes for value in changes.puts.values()]
            assert states == [READY] * len(states)
            assert not any(changes.deletes for changes in followed.changes[:-1]), "gone only by the newer one's end"


async def test_a_newer_one_that_stops_at_once_leaves_the_instance_to_the_older(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    with monitor(etcd, server.port, "older") as older:
        await until_ready(registry, server.port, older.pid)
        with monitor(etcd, server.port, "newer") as newer:
            await until_ready(registry, server.port, newer.pid)
            await eventually(lambda: "which is newer" in older.output, "the older one to notice")
        await until_ready(registry, server.port, older.pid)
        assert older.alive()


async def test_one_that_is_killed_and_started_again_leaves_no_gap(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    """As a container that is restarted in place: the lease of its last run, which is longer than a start takes, ends
    while the next one serves."""
    with monitor(etcd, server.port, "first", ttl=6) as first:
        await until_ready(registry, server.port, first.pid)
        key = registry.keys.make(ReadyKey("m", 1, "i"))
        before = await registry.client.get(key)
        assert before is not None
        async with following(registry.client, registry.keys.ready) as followed:
            first.kill()
            with monitor(etcd, server.port, "second") as second:
                await until_ready(registry, server.port, second.pid)

                async def ended() -> bool:
                    leases = await asyncio.to_thread(etcd.ctl, "lease", "list")
                    return f"{before.lease:x}" not in leases

                await eventually(ended, "the first one's lease to end")
                assert not any(changes.deletes for changes in followed.changes)


async def test_one_that_thaws_after_its_server_has_gone_does_not_register_it(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    with monitor(etcd, server.port, "frozen") as child:
        await until_ready(registry, server.port)
        child.freeze()
        await eventually(registry.empty, "its lease to end")
        await server.stop()
        async with following(registry.client, registry.keys.prefix) as followed:
            child.thaw()

            async def said() -> bool:
                instance = await registry.instance("i")
                return instance is not None and instance.state is InstanceState.UNREACHABLE

            await eventually(said, "it to say that the server has gone")
            allowed = {registry.keys.make(key) for key in (ClaimKey("i"), InstanceKey("i"))}

            def seen() -> set[str]:
                return {key for changes in followed.changes for key in changes.puts}

            await eventually(lambda: allowed <= seen(), "the watch to tell what was read")
            assert seen() == allowed
        assert "this process stood still for" in child.output


_JUMPING_CLOCK = """
import pathlib, sys, time
real, offset = time.time, pathlib.Path(OFFSET)

def jumping():
    # gRPC hands its deadlines on by the wall clock, which in a real jump is the kernel's on both sides.
    grpc = sys._getframe(1).f_globals["__name__"].startswith("grpc")
    return real() + (0 if grpc else float(offset.read_text()))

time.time = jumping
"""


async def test_the_wall_clock_may_jump(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer, tmp_path: Path
) -> None:
    """The monitor's time.time() goes a day ahead, and two days back, each for a lease time: nothing is written but a
    change that the server makes. The kernel's own clock is everybody's, so Python's view of it is what jumps."""
    offset = tmp_path / "offset"
    offset.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(_JUMPING_CLOCK.replace("OFFSET", repr(str(offset))))
    with monitor(etcd, server.port, "jumping", str(tmp_path)) as child:
        await until_ready(registry, server.port)
        for version, jump in enumerate((86_400, -172_800), start=2):
            revision = await registry.revision()
            (tmp_path / "new").write_text(str(jump))
            (tmp_path / "new").rename(offset)
            await asyncio.sleep(TTL + 0.5)  # the lease itself: that it lives on is the point
            assert await registry.revision() == revision
            server.models["m"] = {version: AVAILABLE, version - 1: ServableState.END}

            async def registered(version: int = version) -> bool:
                return (await registry.ready()).get(("m", version)) is READY

            await eventually(registered, "the next version", 10.0)
        days = {line[:10] for line in child.output.splitlines() if line[:2] == "20"}
        assert len(days) >= 3, "the log shows that the clock did jump"
        assert "lease lost" not in child.output


def test_who_waits_before_a_claim_is_taken_and_for_how_long() -> None:
    def held(contested: int, address: str = "a:1") -> Claim:
        return Claim("x", 5, address=address, contested=contested)

    assert wait_before(None, "b:1") == 0
    assert wait_before(held(9, "b:1"), "b:1") == 0, "the same server"
    assert [wait_before(held(count), "b:1") for count in (0, 1, 2, 3, 10**9)] == [0, 2, 4, 8, LONGEST_WAIT]


async def test_two_that_take_an_instance_from_each_other_are_slowed_down_and_told(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    async with ScriptedServer() as other:
        held = Claim("x", 1, "elsewhere", 7, "2026-01-01T00:00:00Z", f"127.0.0.1:{other.port}", contested=1)
        await registry.client.put(registry.keys.make(ClaimKey("i")), encode_claim(held))
        with monitor(etcd, server.port, "waiting") as child:
            await eventually(lambda: "held by the monitor on elsewhere (pid 7" in child.output, "the warning")
            assert await claim(registry) == held
            await until_ready(registry, server.port, child.pid)
            assert (await claim(registry) or held).contested == 2


async def test_a_claim_whose_holder_is_gone_is_not_waited_for(
    etcd: Etcd, registry: RegistryView, server: ScriptedServer
) -> None:
    held = Claim("x", 1, address=f"127.0.0.1:{free_port()}", contested=30)
    await registry.client.put(registry.keys.make(ClaimKey("i")), encode_claim(held))
    with monitor(etcd, server.port, "at-once") as child:
        await until_ready(registry, server.port, child.pid)
        assert "to and fro" not in child.output


def test_a_standstill_is_told_of_once() -> None:
    now = 100.0
    standstill = Standstill(lambda: now)
    now += LONGEST
    assert standstill.stood_still() == 0
    now += LONGEST + 5
    assert standstill.stood_still() == LONGEST + 5
    assert standstill.stood_still() == 0
