"""A whole fleet of real processes for a scenario: etcd, a control plane, Envoy, and instances with their monitors."""

from __future__ import annotations

import json
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control_plane.envoy_files import render_bootstrap
from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import InstanceKey, Keyspace, LeaderKey, PlaneKey, ReadyKey
from registry.leaders import decode_leader
from registry.records import InstanceRecord, PlaneRecord, ReadyRecord, decode_instance, decode_plane, decode_ready
from tests.support.envoy import Envoy
from tests.support.etcd import Etcd
from tests.support.model_server import model_config
from tests.support.processes import ChildProcess, children_of, free_port, wait_for_port
from tests.support.waiting import eventually

_MODELPLANE = (sys.executable, "-m", "modelplane")


def rest(stack: Stack, path: str, body: Any = None) -> tuple[int, Any]:
    """A REST call through Envoy: GET without a body, POST with one; status and JSON."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(stack.rest + path, data), timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@dataclass
class Instance:
    """One model server and the monitor that owns it."""

    name: str
    grpc_port: int
    rest_port: int
    monitor: ChildProcess

    @property
    def server_pid(self) -> int:
        """The model server's own pid: the monitor's child."""
        (pid,) = children_of(self.monitor.pid)
        return pid

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


@dataclass
class Registry:
    """What stands in etcd at one moment."""

    instances: dict[str, InstanceRecord] = field(default_factory=dict)
    ready: dict[ReadyKey, ReadyRecord] = field(default_factory=dict)
    planes: dict[str, PlaneRecord] = field(default_factory=dict)


class Stack:
    """Start parts one by one; `close` ends them all, by the pids that it started."""

    def __init__(self, folder: Path, plane_flags: tuple[str, ...] = (), replicas: int = 1) -> None:
        """`plane_flags`: what every control plane of this stack is told besides; `replicas`: how many there are, which
        Envoy knows from the start: plane-0, plane-1, …"""
        self.folder = folder
        self._plane_flags = plane_flags
        folder.mkdir(parents=True, exist_ok=True)
        self.grpc_port, self.rest_port = free_port(), free_port()
        self.admin_port, self.stats_port = free_port(), free_port()
        self._plane_ports = [(free_port(), free_port()) for _ in range(replicas)]
        self.xds_port, self.http_port = self._plane_ports[0]
        self.planes: dict[str, ChildProcess] = {}
        self.instances: dict[str, Instance] = {}
        self._closers: list[Callable[[], object]] = []
        self.etcd = Etcd(folder)
        self._closers.append(self.etcd.close)
        # This fleet starts from nothing; a control plane that is started again has the default's patience.
        for number in range(replicas):
            self.start_plane("--empty-registry-grace", "0", number=number)
        self.envoy = self.start_envoy()

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def rest(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def plane(self) -> ChildProcess:
        """The first control plane, or the only one."""
        return self.planes["plane-0"]

    def start_plane(self, *flags: str, number: int = 0) -> ChildProcess:
        xds_port, http_port = self._plane_ports[number]
        name = f"plane-{number}"
        child = ChildProcess(
            [
                *_MODELPLANE,
                "control-plane",
                *("--etcd", self.etcd.endpoint),
                *("--replica", name),
                *("--xds-listen", f"127.0.0.1:{xds_port}"),
                *("--http-listen", f"127.0.0.1:{http_port}"),
                *("--listen-address", "127.0.0.1"),
                *("--grpc-port", str(self.grpc_port)),
                *("--rest-port", str(self.rest_port)),
                "--no-reuse-port",
                *self._plane_flags,
                *flags,
            ],
            self.folder / ("control-plane.log" if number == 0 else f"control-plane-{number}.log"),
        )
        self._closers.append(child.stop)
        wait_for_port(xds_port, child)
        self.planes[name] = child
        return child

    def start_envoy(self) -> Envoy:
        planes = tuple(f"127.0.0.1:{xds_port}" for xds_port, _ in self._plane_ports)
        admin, stats = f"127.0.0.1:{self.admin_port}", f"127.0.0.1:{self.stats_port}"
        bootstrap = render_bootstrap(planes, admin=admin, stats=stats)
        envoy = Envoy(self.folder, bootstrap, self.admin_port, workers=2)
        self._closers.append(envoy.close)
        self.envoy = envoy
        return envoy

    def start_instance(
        self,
        name: str,
        models: Mapping[str, Path],
        *,
        versions: int = 2,
        server_flags: tuple[str, ...] = (),
        monitor_flags: tuple[str, ...] = (),
    ) -> Instance:
        """Start a model server for `models` (name -> base path), which keeps the newest `versions` of each, under a
        monitor. A name that was used before is the same instance again, on its old ports."""
        known = self.instances.get(name)
        grpc_port, rest_port = (known.grpc_port, known.rest_port) if known else (free_port(), free_port())
        config = self.folder / f"{name}.config"
        config.write_text(model_config(models, f"latest {{ num_versions: {versions} }}"))
        monitor = ChildProcess(
            [
                *_MODELPLANE,
                "monitor",
                *("--etcd", self.etcd.endpoint),
                *("--instance", name),
                *monitor_flags,
                "--",
                *_MODELPLANE,
                "model-server",
                f"--port={grpc_port}",
                f"--rest_api_port={rest_port}",
                f"--model_config_file={config}",
                *server_flags,
            ],
            self.folder / f"{name}.log",
        )
        self._closers.append(monitor.stop)
        instance = Instance(name, grpc_port, rest_port, monitor)
        self.instances[name] = instance
        return instance

    def start_managed(
        self, name: str, *, server_flags: tuple[str, ...] = (), monitor_flags: tuple[str, ...] = ()
    ) -> Instance:
        """Start a model server without models, under a monitor that may load what policies want. A name that was used
        before is the same instance again, on its old ports."""
        known = self.instances.get(name)
        grpc_port, rest_port = (known.grpc_port, known.rest_port) if known else (free_port(), free_port())
        command = [
            *(*_MODELPLANE, "monitor", "--manage", "--etcd", self.etcd.endpoint, "--instance", name, *monitor_flags),
            *("--", *_MODELPLANE, "model-server", f"--port={grpc_port}", f"--rest_api_port={rest_port}"),
            *("--max_num_load_retries=0", *server_flags),
        ]
        monitor = ChildProcess(command, self.folder / f"{name}.log")
        self._closers.append(monitor.stop)
        instance = Instance(name, grpc_port, rest_port, monitor)
        self.instances[name] = instance
        return instance

    async def leader(self) -> str:
        """The control plane that leads; empty: none does."""
        async with EtcdClient(EtcdConfig((self.etcd.endpoint,))) as client:
            entry = await client.get(Keyspace().make(LeaderKey()))
        return "" if entry is None else decode_leader(entry.value).replica

    async def registry(self) -> Registry:
        """Read all of it."""
        space, picture = Keyspace(), Registry()
        async with EtcdClient(EtcdConfig((self.etcd.endpoint,))) as client:
            listing = await client.list(space.prefix)
        for entry in listing.entries:
            match space.parse(entry.key):
                case InstanceKey(name):
                    picture.instances[name] = decode_instance(entry.value)
                case ReadyKey() as key:
                    picture.ready[key] = decode_ready(entry.value)
                case PlaneKey(name):
                    picture.planes[name] = decode_plane(entry.value)
                case _:
                    pass
        return picture

    async def until_ready(self, *keys: ReadyKey, timeout: float = 90.0) -> None:
        """Wait until these servables are READY and every Envoy has acknowledged it."""

        async def done() -> bool:
            picture = await self.registry()
            for instance in self.instances.values():
                assert instance.monitor.alive(), instance.monitor.output[-3000:]
            missing = [key for key in keys if (r := picture.ready.get(key)) is None or r.state != "READY"]
            assert not missing, f"{missing}; instances say {picture.instances}"
            # The record is written again once the Envoys have acknowledged what the newest of these keys brought.
            revisions = await self.revisions(*keys)
            assert all(plane.converged_revision >= max(revisions) for plane in picture.planes.values())
            return bool(picture.planes)

        await eventually(done, f"{', '.join(f'{k.model}@{k.version} on {k.instance}' for k in keys)}", timeout)
        await self.envoy.ready()

    async def revisions(self, *keys: ReadyKey) -> list[int]:
        """The revisions at which these were last written."""
        async with EtcdClient(EtcdConfig((self.etcd.endpoint,))) as client:
            entries = [await client.get(Keyspace().make(key)) for key in keys]
        return [entry.mod_revision for entry in entries if entry is not None]

    def close(self) -> None:
        """End everything, newest first, except that the registry outlives those who write to it."""
        for instance in self.instances.values():
            if instance.monitor.alive():
                instance.monitor.send(signal.SIGTERM)
        failures = []
        for closer in reversed(self._closers):
            try:
                closer()
            except Exception as error:  # noqa: BLE001 - the others must be ended too
                failures.append(error)
        if failures:
            raise ExceptionGroup("ending the stack", failures)
