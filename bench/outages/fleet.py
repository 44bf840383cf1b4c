"""The processes: etcd (one member or three), two control planes, two Envoys, and instances with real monitors; and what
should be in the registry and in the Envoys, which is known here and nowhere else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from bench.churn.fleet import Replica
from control_plane.envoy_files import render_bootstrap
from registry.etcd import EtcdClient, EtcdConfig, EtcdError
from registry.keys import InstanceKey, Keyspace, ReadyKey
from registry.records import ReadyState, RecordError, decode_ready
from tests.support.envoy import Envoy
from tests.support.etcd import Etcd, EtcdCluster
from tests.support.processes import ChildProcess, children_of, free_port, show_logs
from tests.support.waiting import eventually

_SPACE = Keyspace()
_MODELPLANE = (sys.executable, "-m", "modelplane")
SLOW = "slow"
"""A model whose answers take as long as it is told; asked by the row that needs it alone."""
MODELS = ("m", "n")


@dataclass
class Instance:
    """One server under a monitor of its own; `versions` is what the server holds."""

    name: str
    port: int
    folder: Path
    versions: dict[str, list[int]]
    delay: float = 0.0
    monitor: ChildProcess | None = field(default=None)

    @property
    def holds(self) -> Path:
        return self.folder / f"{self.name}.json"

    def write(self) -> None:
        """Let the server know what it holds."""
        document = {
            model: {"versions": held, "delay": self.delay if model == SLOW else 0.0}
            for model, held in self.versions.items()
        }
        fresh = self.holds.with_suffix(".new")
        fresh.write_text(json.dumps(document))
        fresh.rename(self.holds)


class Fleet:
    """Started by `async with`, ended with it. `living` are the instances that should be served, `dead` those that were
    stopped or killed and can be started again under the same name and on the same port."""

    def __init__(
        self, folder: Path, *, cluster: bool = False, ttl: float = 10.0, grace: float = 10.0, instances: int = 4
    ) -> None:
        self.folder, self.ttl, self.grace, self.cluster = folder, ttl, grace, cluster
        self.etcd: Etcd | EtcdCluster
        self.grpc_port, self.rest_port = free_port(), free_port()
        self.replicas: list[Replica] = []
        self.envoys: list[Envoy] = []
        names = [f"i{number}" for number in range(instances)]
        self._all = {name: Instance(name, free_port(), folder, {}) for name in names}
        self.leaving: list[Instance] = []
        """Those that drain: no new requests, but their keys and endpoints may stand."""
        self.version = 1
        self._stack = AsyncExitStack()

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def living(self) -> list[Instance]:
        return [one for one in self._all.values() if one.monitor is not None]

    @property
    def dead(self) -> list[Instance]:
        return [one for one in self._all.values() if one.monitor is None]

    async def __aenter__(self) -> Fleet:
        async with AsyncExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.etcd = await asyncio.to_thread(self._etcd)
            stack.push_async_callback(asyncio.to_thread, self.etcd.close)
            # In a fleet that begins, an empty registry is true.
            for number in range(2):
                self.replicas.append(self._replica(number))
                stack.push_async_callback(asyncio.to_thread, self.replicas[-1].child.stop, 10)
            stack.push_async_callback(self._end_instances)
            # One is left dead: it is what comes during the first outage.
            for instance in list(self._all.values())[:-1]:
                self.start(instance)
            for number in range(2):
                self.envoys.append(await asyncio.to_thread(self._envoy, number))
                stack.push_async_callback(asyncio.to_thread, self.envoys[-1].close)
            config = EtcdConfig(self.etcd.endpoints, timeout=2.0)
            self.client = await stack.enter_async_context(EtcdClient(config))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            show_logs(self.folder)
        await self._stack.aclose()

    def _etcd(self) -> Etcd | EtcdCluster:
        # Small enough to be filled up, large enough for everything else.
        return EtcdCluster(self.folder) if self.cluster else Etcd(self.folder, "--quota-backend-bytes", "8000000")

    def _replica(self, number: int) -> Replica:
        name, xds_port, http_port = f"plane-{number}", free_port(), free_port()
        command = [
            *(*_MODELPLANE, "control-plane", "--replica", name, "--etcd", ",".join(self.etcd.endpoints)),
            *("--xds-listen", f"127.0.0.1:{xds_port}", "--http-listen", f"127.0.0.1:{http_port}"),
            *("--listen-address", "127.0.0.1", "--grpc-port", str(self.grpc_port), "--rest-port", str(self.rest_port)),
            *("--lease-ttl", f"{self.ttl:g}", "--lost-lease-grace", f"{self.grace:g}", "--empty-registry-grace", "0"),
        ]
        return Replica(name, xds_port, http_port, ChildProcess(command, self.folder / f"{name}.log"))

    def _envoy(self, number: int) -> Envoy:
        planes = [f"127.0.0.1:{replica.xds_port}" for replica in self.replicas]
        admin = free_port()
        # Each has another control plane at first.
        order = planes[number % len(planes) :] + planes[: number % len(planes)]
        text = render_bootstrap(order, admin=f"127.0.0.1:{admin}", node_id=f"envoy-{number}")
        return Envoy(self.folder, text, admin, name=f"envoy-{number}")

    def start(self, instance: Instance) -> None:
        """Start a dead instance's server under a monitor."""
        held = [version for version in (self.version - 1, self.version) if version]
        instance.versions = {MODELS[0]: held, **{model: [1] for model in (*MODELS[1:], SLOW)}}
        instance.write()
        command = [
            *(*_MODELPLANE, "monitor", "--etcd", ",".join(self.etcd.endpoints), "--instance", instance.name),
            *("--lease-ttl", f"{self.ttl:g}", "--drain-deadline", "120"),
            *(part for model in (*MODELS, SLOW) for part in ("--model", model)),
            *("--", sys.executable, "-m", "bench.outages.server"),
            *(f"--port={instance.port}", f"--holds={instance.holds}"),
        ]
        instance.monitor = ChildProcess(command, self.folder / f"{instance.name}.log")

    def claim_again(self, instance: Instance) -> None:
        """Start a second monitor of a living instance, with a server on another port; the first one's end is not
        waited for."""
        self._stack.push_async_callback(asyncio.to_thread, self._declare_dead(instance).stop)
        instance.port = free_port()
        self.start(instance)

    async def kill_server(self, instance: Instance) -> None:
        """kill -9 of the server: its monitor may say so, if etcd listens, and ends."""
        monitor = self._declare_dead(instance)
        os.kill(children_of(monitor.pid)[0], signal.SIGKILL)
        self._stack.push_async_callback(asyncio.to_thread, monitor.stop)

    async def kill_instance(self, instance: Instance) -> None:
        """kill -9 of both: nobody says anything."""
        monitor = self._declare_dead(instance)
        server = children_of(monitor.pid)[0]
        monitor.kill()
        os.kill(server, signal.SIGKILL)
        monitor.stop()
        await eventually(lambda: not Path(f"/proc/{server}").exists(), "the killed server to be gone")

    def drain(self, instance: Instance) -> ChildProcess:
        """SIGTERM; the monitor's process, to wait for."""
        monitor = self._declare_dead(instance)
        self.leaving.append(instance)
        monitor.send(signal.SIGTERM)
        self._stack.push_async_callback(asyncio.to_thread, monitor.stop)
        return monitor

    def _declare_dead(self, instance: Instance) -> ChildProcess:
        monitor = instance.monitor
        assert monitor is not None, f"{instance.name} is dead already"
        assert monitor.alive(), f"{instance.name}'s monitor has ended:\n{monitor.output[-3000:]}"
        instance.monitor = None
        return monitor

    def next_version(self) -> None:
        """A newer version of the first model is loaded by every living instance, beside the others that they hold."""
        self.version += 1
        for instance in self.living:
            instance.versions[MODELS[0]].append(self.version)
            instance.write()

    def drop_old_versions(self) -> None:
        """As a policy `latest 2` does once a new version is there."""
        for instance in self.living:
            instance.versions[MODELS[0]] = instance.versions[MODELS[0]][-2:]
            instance.write()

    def set_delay(self, delay: float) -> None:
        """How long an answer of the slow model takes."""
        for instance in self.living:
            instance.delay = delay
            instance.write()

    async def _end_instances(self) -> None:
        for instance in self.living:
            assert instance.monitor is not None
            instance.monitor.send(signal.SIGTERM)
        for instance in self.living:
            assert instance.monitor is not None
            await asyncio.to_thread(instance.monitor.stop, 5)

    # -- what should be, and what is

    async def registry_fault(self) -> str:
        """What in the registry is not as it should be; empty: nothing."""
        try:
            listing = await self.client.list(_SPACE.prefix)
        except EtcdError as error:
            return f"etcd does not answer: {error}"
        wanted = {_SPACE.make(key) for key in self._keys(self.living)}
        wrong: set[str] = set()
        passing = {_SPACE.make(key) for key in self._keys(self.leaving)}
        for entry in listing.entries:
            key = _SPACE.parse(entry.key)
            if isinstance(key, ReadyKey | InstanceKey) and entry.key not in passing:
                good = entry.key in wanted and (isinstance(key, InstanceKey) or _is_ready(entry.value))
                wanted.discard(entry.key)
                if not good:
                    wrong.add(entry.key)
        faults = {"missing": sorted(wanted), "wrong": sorted(wrong)}
        return "; ".join(f"{what} {', '.join(keys[:4])} ({len(keys)})" for what, keys in faults.items() if keys)

    def _keys(self, instances: Iterable[Instance]) -> list[InstanceKey | ReadyKey]:
        keys: list[InstanceKey | ReadyKey] = []
        for one in instances:
            keys.append(InstanceKey(one.name))
            keys += [ReadyKey(model, version, one.name) for model, held in one.versions.items() for version in held]
        return keys

    def envoy_fault(self) -> str:
        """What in some Envoy's endpoints is not as it should be; empty: nothing. Blocks."""
        wanted: dict[str, set[int]] = {}
        for one in self.living:
            for model, held in one.versions.items():
                for version in held:
                    wanted.setdefault(f"{model}@{version}", set()).add(one.port)
        for model in (*MODELS, SLOW):
            # What a request that names no version is sent to: those that hold the newest.
            newest = max((version for one in self.living for version in one.versions[model]), default=0)
            wanted[model] = wanted.get(f"{model}@{newest}", set())
        for number, envoy in enumerate(self.envoys):
            seen = endpoints(envoy)
            for cluster, ports in sorted(wanted.items()):
                if seen.get(cluster, set()) != ports:
                    names = {one.port: one.name for one in self._all.values()}
                    have = sorted(names.get(port, str(port)) for port in seen.get(cluster, set()))
                    return f"envoy-{number} has {cluster} on {', '.join(have) or 'nothing'}"
        return ""

    def in_flight(self, instance: Instance, model: str) -> int:
        """Requests for a model that the Envoys have under way on an instance. Blocks."""
        counts = [_hosts(envoy).get((model, instance.port), ("", 0))[1] for envoy in self.envoys]
        return sum(counts)

    def drains(self, instance: Instance, model: str) -> bool:
        """Whether every Envoy knows the instance as one that drains. Blocks."""
        return all(_hosts(envoy).get((model, instance.port), ("", 0))[0] == "DRAINING" for envoy in self.envoys)


def _is_ready(value: bytes) -> bool:
    try:
        return decode_ready(value).state is ReadyState.READY
    except RecordError:
        return False


def _hosts(envoy: Envoy) -> dict[tuple[str, int], tuple[str, int]]:
    """By cluster and port: what the control plane says of the endpoint's health, and how many requests it has now."""
    found: dict[tuple[str, int], tuple[str, int]] = {}
    for cluster in json.loads(envoy.admin("/clusters?format=json")).get("cluster_statuses", ()):
        for host in cluster.get("host_statuses", ()):
            where = host["address"].get("socket_address")
            if where is None:  # the listener that copies go to is inside of Envoy
                continue
            port = where["port_value"]
            active = {stat["name"]: int(stat.get("value", 0)) for stat in host.get("stats", ())}.get("rq_active", 0)
            found[cluster["name"], port] = host["health_status"].get("eds_health_status", ""), active
    return found


def endpoints(envoy: Envoy) -> dict[str, set[int]]:
    """The ports of each cluster that new requests are sent to, as far as the control plane has its way."""
    found: dict[str, set[int]] = {}
    for (cluster, port), (health, _) in _hosts(envoy).items():
        if health == "HEALTHY":
            found.setdefault(cluster, set()).add(port)
    return found
