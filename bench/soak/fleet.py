"""The processes: etcd of three members, two control planes, an Envoy, and three model servers, each under a monitor
that has started it; and what should be in the registry and in Envoy, which is known here and nowhere else."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bench.churn.fleet import Replica
from bench.outages.fleet import endpoints
from bench.soak.clients import STEADY, SWITCHED
from bench.soak.verdict import Kill, Record
from control_plane.envoy_files import render_bootstrap
from registry.etcd import EtcdClient, EtcdConfig, EtcdError
from registry.keys import InstanceKey, Keyspace, PlaneKey, ReadyKey
from registry.records import InstanceState, ReadyState, RecordError, decode_instance, decode_plane, decode_ready
from tests.support import saved_models
from tests.support.envoy import Envoy
from tests.support.etcd import EtcdCluster
from tests.support.model_server import model_config
from tests.support.processes import ChildProcess, children_of, free_port, show_logs, wait_for_port
from tests.support.relay import Relay
from tests.support.switch import Switch
from tests.support.waiting import eventually

MODELPLANE = (sys.executable, "-m", "modelplane")
NAMES = ("a", "b", "c")
_SPACE = Keyspace()
# Else all of a run's revisions, and its raft log, stay in the members' memory.
_SHORT_HISTORY = ("--auto-compaction-mode", "revision", "--auto-compaction-retention", "500", "--snapshot-count", "500")


@dataclass
class Instance:
    """A model server's monitor; `server` is the pid of its child, the server."""

    name: str
    grpc_port: int
    rest_port: int
    monitor: ChildProcess
    server: int = 0


class Fleet:
    """Started by `async with`, ended with it. It starts with version 1 of the steady model."""

    def __init__(self, folder: Path, *, ttl: float = 4.0) -> None:
        """`ttl`: of all leases, and of the control planes' grace."""
        self.folder, self.ttl = folder, ttl
        self.grpc_port, self.rest_port = free_port(), free_port()
        self.etcd: EtcdCluster
        self.envoy: Envoy
        self.client: EtcdClient
        self.replicas: list[Replica] = []
        self.relays: list[Relay] = []
        self.instances: dict[str, Instance] = {}
        self.switches: dict[str, Switch] = {}
        self.record = Record()
        self.version = 1
        self.steady = folder / "models" / STEADY
        self._number = 1
        self._stack = AsyncExitStack()

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def endpoints(self) -> str:
        """etcd's, as flags take them."""
        return ",".join(self.etcd.endpoints)

    async def __aenter__(self) -> Fleet:
        async with AsyncExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.etcd = await asyncio.to_thread(EtcdCluster, self.folder, *_SHORT_HISTORY)
            stack.push_async_callback(asyncio.to_thread, self.etcd.close)
            # In a fleet that begins, an empty registry is true; one that starts again has the default's patience.
            for number in range(2):
                ports = free_port(), free_port()
                self.replicas.append(Replica(f"plane-{number}", *ports, self._plane(number, *ports, grace=0)))
            stack.push_async_callback(self._end)
            saved_models.half_plus_two(self.steady, 1, b=1.0)
            for name in NAMES:
                self.switches[name] = Switch(self.folder / f"switch-{name}")
                saved_models.switched(self.folder / "models" / name, self.switches[name].file)
                self.start(name)
            for replica in self.replicas:
                await asyncio.to_thread(wait_for_port, replica.xds_port, replica.child)
                self.relays.append(await stack.enter_async_context(Relay(replica.xds_port)))
            self.envoy = await asyncio.to_thread(self._envoy)
            stack.push_async_callback(asyncio.to_thread, self.envoy.close)
            self.client = await stack.enter_async_context(EtcdClient(EtcdConfig(self.etcd.endpoints, timeout=2.0)))
            for name in NAMES:
                await self.started(name)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            show_logs(self.folder)
        await self._stack.aclose()

    async def _end(self) -> None:
        # Envoy is gone already, so a clean end would be a drain that waits for it.
        for instance in self.instances.values():
            servers = children_of(instance.monitor.pid) if instance.monitor.alive() else []
            instance.monitor.kill()
            for server in servers:
                os.kill(server, signal.SIGKILL)
            instance.monitor.stop()
        for replica in self.replicas:
            replica.child.kill()
            replica.child.stop()

    # -- control planes and Envoy

    def _plane(self, number: int, xds_port: int, http_port: int, *, grace: float) -> ChildProcess:
        name = f"plane-{number}"
        command = [
            *(*MODELPLANE, "control-plane", "--replica", name, "--etcd", self.endpoints),
            *("--xds-listen", f"127.0.0.1:{xds_port}", "--http-listen", f"127.0.0.1:{http_port}"),
            *("--listen-address", "127.0.0.1", "--grpc-port", str(self.grpc_port), "--rest-port", str(self.rest_port)),
            *("--lease-ttl", f"{self.ttl:g}", "--lost-lease-grace", f"{self.ttl:g}"),
            *("--empty-registry-grace", f"{grace:g}", "--bulk-loss-hold", f"{3 * self.ttl:g}"),
        ]
        return ChildProcess(command, self.folder / f"{name}.log")

    async def restart_planes(self, *numbers: int) -> None:
        """Start killed ones again."""
        for number in numbers:
            replica = self.replicas[number]
            replica.child.stop()
            replica.child = self._plane(number, replica.xds_port, replica.http_port, grace=2.5 * self.ttl)
        for number in numbers:
            await asyncio.to_thread(wait_for_port, self.replicas[number].xds_port, self.replicas[number].child)

    def _envoy(self) -> Envoy:
        admin = free_port()
        text = render_bootstrap([relay.endpoint for relay in self.relays], admin=f"127.0.0.1:{admin}", node_id="envoy")
        return Envoy(self.folder, text, admin, workers=2)

    # -- instances

    def start(self, name: str, *, moved: bool = False) -> None:
        """Start an instance's monitor, which starts the server; `moved`: on other ports than before."""
        known = None if moved else self.instances.get(name)
        ports = (known.grpc_port, known.rest_port) if known else (free_port(), free_port())
        config = self.folder / f"{name}.config"
        models = {STEADY: self.steady, SWITCHED: self.folder / "models" / name}
        config.write_text(model_config(models, "latest { num_versions: 2 }"))
        command = [
            *(*MODELPLANE, "monitor", "--etcd", self.endpoints, "--instance", name),
            *("--lease-ttl", f"{self.ttl:g}", "--reprove-interval", "1", "--reprove-rate", "10"),
            *("--probe-deadline", "5", "--drain-deadline", "60"),
            *("--", *MODELPLANE, "model-server", f"--port={ports[0]}", f"--rest_api_port={ports[1]}"),
            # It would load a version that was broken, and has been removed, again for five minutes.
            *(f"--model_config_file={config}", "--max_num_load_retries=0"),
        ]
        monitor = ChildProcess(command, self.folder / f"{name}.log")
        self.instances[name] = Instance(name, *ports, monitor)

    async def started(self, name: str) -> None:
        """Wait until its server has loaded its models, which is when it listens."""
        one = self.instances[name]
        await asyncio.to_thread(wait_for_port, one.grpc_port, one.monitor, 90)
        (one.server,) = children_of(one.monitor.pid)

    async def restart(self, name: str) -> None:
        """Start an instance again as a supervisor does, once its monitor has ended."""
        old = self.instances[name].monitor
        await asyncio.to_thread(old.wait, 90)
        old.stop()
        self.start(name)
        await self.started(name)

    async def kill_server(self, name: str) -> None:
        """kill -9, and wait until its sockets are closed."""
        one = self.instances[name]
        kill = Kill(name, time.monotonic())
        self.record.kills.append(kill)
        os.kill(one.server, signal.SIGKILL)
        await eventually(lambda: _is_dead(one.server), "the killed server to be gone")
        kill.gone = time.monotonic()

    async def kill_instance(self, name: str) -> None:
        """kill -9 of monitor and server, so that nobody says anything."""
        self.instances[name].monitor.process.kill()
        await self.kill_server(name)
        server = self.instances[name].server
        # An orphan: it is gone, with its port, when init has reaped it.
        await eventually(lambda: not Path(f"/proc/{server}").exists(), "the killed server to be reaped")

    def next_version(self) -> None:
        """A newer version of the steady model appears on every instance; version N says that it is N."""
        self._number += 1
        self.version = self._number
        saved_models.half_plus_two(self.steady, self.version, b=float(self.version))

    def broken_version(self, *, unreadable: bool) -> Path:
        """A version appears that is not to be served; its folder. A number is never used twice."""
        self._number += 1
        write = saved_models.corrupt if unreadable else saved_models.without_variables
        return write(self.steady, self._number)

    def remove(self, version: Path) -> None:
        """An operator takes a version folder away."""
        away = self.folder / f"removed-{version.name}"
        version.rename(away)
        shutil.rmtree(away)

    def processes(self) -> dict[str, int]:
        """All that live long, by name."""
        found = {f"etcd {number}": child.pid for number, child in enumerate(self.etcd.children)}
        found |= {replica.name: replica.child.pid for replica in self.replicas} | {"envoy": self.envoy.child.pid}
        found |= {f"monitor {name}": one.monitor.pid for name, one in self.instances.items()}
        return found | {f"server {name}": one.server for name, one in self.instances.items()}

    # -- what should be, and what is

    async def registry_fault(self) -> str:
        """What in the registry is not as it should be; empty: nothing."""
        try:
            listing = await self.client.list(_SPACE.prefix)
        except EtcdError as error:
            return f"etcd does not answer: {error}"
        wanted = {ReadyKey(STEADY, self.version, name) for name in NAMES} | {ReadyKey(SWITCHED, 1, n) for n in NAMES}
        serving, planes, revision = set[str](), list[int](), 0
        for entry in listing.entries:
            key = _SPACE.parse(entry.key)
            try:
                if isinstance(key, InstanceKey) and decode_instance(entry.value).state is InstanceState.SERVING:
                    serving.add(key.instance)
                elif isinstance(key, PlaneKey):
                    planes.append(decode_plane(entry.value).converged_revision)
                elif isinstance(key, ReadyKey):
                    record = decode_ready(entry.value)
                    right = record.grpc_port == self.instances[key.instance].grpc_port
                    if record.state is not ReadyState.READY or key.version > self.version or not right:
                        return f"{entry.key} is {record.state}"
                    wanted.discard(key)
                    revision = max(revision, entry.mod_revision)
            except RecordError as error:
                return f"{entry.key}: {error}"
        if wanted or serving != set(NAMES):
            return f"missing {', '.join(_SPACE.make(key) for key in sorted(wanted, key=str)[:4])}; serving: {serving}"
        return "" if len(planes) == 2 and min(planes) >= revision else f"control planes are at {planes} of {revision}"

    def envoy_fault(self) -> str:
        """What in Envoy's endpoints is not as it should be; empty: nothing. Blocks."""
        seen = endpoints(self.envoy)
        ports = {one.grpc_port: name for name, one in self.instances.items()}
        for cluster in (STEADY, f"{STEADY}@{self.version}", SWITCHED):
            if seen.get(cluster, set()) != set(ports):
                have = sorted(ports.get(port, str(port)) for port in seen.get(cluster, set()))
                return f"Envoy has {cluster} on {', '.join(have) or 'nothing'}"
        return ""

    async def state(self, name: str) -> InstanceState | None:
        """What an instance's monitor says of it."""
        entry = await self.client.get(_SPACE.make(InstanceKey(name)))
        return decode_instance(entry.value).state if entry is not None else None

    async def until_failing(self, name: str) -> None:
        """Wait until the switched model is FAILING on an instance, and Envoy has left it out."""
        key, port = _SPACE.make(ReadyKey(SWITCHED, 1, name)), self.instances[name].grpc_port

        async def out() -> bool:
            entry = await self.client.get(key)
            assert entry is not None, f"{key} is not there"
            assert decode_ready(entry.value).state is ReadyState.FAILING, f"{entry.value!r}"
            return port not in (await asyncio.to_thread(endpoints, self.envoy)).get(SWITCHED, set())

        await eventually(out, f"{SWITCHED} to be FAILING on {name}, and out of Envoy", 60)


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
