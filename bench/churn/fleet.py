"""The processes: etcd, control planes, Envoys, taps between these, and one process that stands for all instances."""

from __future__ import annotations

import asyncio
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.churn.audit import Audit, audit
from bench.churn.instances import LISTENING
from bench.churn.tap import Tap, discovery_streams
from bench.churn.writers import Convergence, Writer
from bench.errors import BenchError
from control_plane.envoy_files import render_bootstrap
from registry.etcd import EtcdClient, EtcdConfig
from tests.support.envoy import Envoy
from tests.support.etcd import Etcd
from tests.support.processes import ChildProcess, free_port
from tests.support.waiting import eventually


@dataclass
class Replica:
    """One control plane; its ports stay the same when it is started again."""

    name: str
    xds_port: int
    http_port: int
    child: ChildProcess

    @property
    def address(self) -> str:
        """Where it serves Envoys."""
        return f"127.0.0.1:{self.xds_port}"

    def get(self, path: str) -> str:
        """The body that its HTTP port answers with; empty if it doesn't answer, or not with 200."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return str(answer.read(), "utf-8")
        except (urllib.error.URLError, OSError):
            return ""

    def metric(self, name: str) -> float:
        """The sum of its metrics that start with this."""
        lines = self.get("/metrics").splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def _listening(child: ChildProcess) -> bool:
    # Its own word: to connect to a port proves only that somebody listens there, another run's instance perhaps.
    if not child.alive():
        raise BenchError(f"the instances have ended:\n{child.output[-3000:]}")
    return LISTENING in child.output


class Fleet:
    """Started by `async with`, ended with it. All Envoys of a fleet share their ports (SO_REUSEPORT).

    `envoys` are started with `start_envoy`, once there is something for them to be told.
    """

    def __init__(
        self,
        folder: Path,
        *,
        replicas: int = 3,
        instances: int = 2,
        flags: tuple[str, ...] = (),
        bootstrap: dict[str, Any] | None = None,
        workers: int = 2,
        tapped: bool = True,
    ) -> None:
        self.folder = folder
        self.grpc_port, self.rest_port = free_port(), free_port()
        self.replicas: list[Replica] = []
        self.writers: list[Writer] = []
        self.envoys: list[Envoy] = []
        self.taps: list[list[Tap]] = []
        self._count, self._flags, self._bootstrap = replicas, flags, bootstrap or {}
        self._instances, self._workers, self._tapped = instances, workers, tapped
        self._stack = AsyncExitStack()

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"127.0.0.1:{self.grpc_port}"

    async def __aenter__(self) -> Fleet:
        async with AsyncExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.etcd = await asyncio.to_thread(Etcd, self.folder)
            stack.push_async_callback(asyncio.to_thread, self.etcd.close)
            self.client = await stack.enter_async_context(EtcdClient(EtcdConfig((self.etcd.endpoint,))))
            self.convergence = Convergence(self.client)
            ports = [free_port() for _ in range(self._instances)]
            command = [sys.executable, "-m", "bench.churn.instances", *map(str, ports)]
            child = ChildProcess(command, self.folder / "instances.log")
            stack.push_async_callback(asyncio.to_thread, child.stop)
            await eventually(lambda: _listening(child), "the instances to listen", 60)
            for number, port in enumerate(ports):
                writer = Writer(f"i{number}", port, self.client)
                self.writers.append(await stack.enter_async_context(writer))
            for number in range(self._count):
                xds_port, http_port = free_port(), free_port()
                child = self._launch(f"plane-{number}", xds_port, http_port)
                self.replicas.append(Replica(f"plane-{number}", xds_port, http_port, child))
                stack.push_async_callback(self._end, self.replicas[-1])
            for replica in self.replicas:
                await self._serving(replica)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _launch(self, name: str, xds_port: int, http_port: int) -> ChildProcess:
        return ChildProcess(
            [
                *(sys.executable, "-m", "modelplane", "control-plane", "--replica", name, "--etcd", self.etcd.endpoint),
                *("--xds-listen", f"127.0.0.1:{xds_port}", "--http-listen", f"127.0.0.1:{http_port}"),
                *("--listen-address", "127.0.0.1"),
                *("--grpc-port", str(self.grpc_port), "--rest-port", str(self.rest_port)),
                # A killed replica's record must not hold up a drain for long.
                *("--lease-ttl", "3"),
                *self._flags,
            ],
            self.folder / f"{name}.log",
        )

    async def _end(self, replica: Replica) -> None:
        await asyncio.to_thread(replica.child.stop, 10)

    def kill(self, replica: Replica) -> None:
        """kill -9."""
        replica.child.kill()
        replica.child.stop()  # its log file, and whatever it may have started

    async def restart(self, replica: Replica) -> None:
        """Start it again and wait until it could serve Envoys."""
        replica.child = self._launch(replica.name, replica.xds_port, replica.http_port)
        await self._serving(replica)

    async def _serving(self, replica: Replica) -> None:
        """Wait until it has read the registry."""

        def ready() -> bool:
            if not replica.child.alive():
                said = replica.child.output[-3000:]
                if "can't be listened on" not in said:
                    raise BenchError(f"{replica.name} has ended:\n{said}")
                # Some connection was given the port as its own, for the moment.
                replica.child.stop()
                replica.child = self._launch(replica.name, replica.xds_port, replica.http_port)
            return replica.get("/readyz") == "ok\n"

        await eventually(lambda: asyncio.to_thread(ready), f"{replica.name} to serve", 60)

    async def start_envoy(self) -> Envoy:
        """One more Envoy, which knows of every control plane; waits until it serves."""
        number = len(self.envoys)
        tapped = self.replicas if self._tapped else []
        taps = [await self._stack.enter_async_context(Tap(free_port(), replica.xds_port)) for replica in tapped]
        self.taps.append(taps)
        addresses = [tap.port for tap in taps] or [replica.xds_port for replica in self.replicas]
        admin = free_port()
        text = render_bootstrap(
            [f"127.0.0.1:{port}" for port in addresses],
            admin=f"127.0.0.1:{admin}",
            node_id=f"envoy-{number}",
            **self._bootstrap,
        )
        name = f"envoy-{number}"
        envoy = await asyncio.to_thread(Envoy, self.folder, text, admin, name=name, workers=self._workers)
        self._stack.push_async_callback(asyncio.to_thread, envoy.close)
        self.envoys.append(envoy)

        def live() -> bool:
            assert envoy.child.alive(), envoy.child.output[-3000:]
            return envoy.admin("/ready").strip() == "LIVE"

        await eventually(lambda: asyncio.to_thread(live), f"{name} to serve", 60)
        return envoy

    def audits(self) -> Iterator[tuple[int, float, Audit]]:
        """(Envoy, when it began, audit) of every discovery stream so far, each Envoy's in the order of time."""
        for number, taps in enumerate(self.taps):
            streams = []
            for conversation in (one for tap in taps for one in tap.conversations):
                streams += [messages for messages in discovery_streams(conversation) if messages]
            for messages in sorted(streams, key=lambda messages: messages[0][0]):
                yield number, messages[0][0], audit(message for _, message in messages)

    def reconnects(self) -> Audit:
        """All streams but each Envoy's first, added up."""
        total, seen = Audit(), set[int]()
        for number, _, one in self.audits():
            if number in seen:
                total += one
            seen.add(number)
        return total
