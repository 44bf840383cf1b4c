"""control_plane/swarm.yaml on an engine of the tests' own that is a swarm of one node, with the images of the tests of
compose.yaml."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from control_plane.envoy_files import render_bootstrap
from tests.support.compose import Compose
from tests.support.docker_engine import ROOT, DockerEngine
from tests.support.processes import free_port
from tests.support.waiting import eventually

_STACK = "mp"
_POOL, _GATEWAY = "10.204.0.0/17", "10.204.255.0/24"


def docker_or_skip() -> str:
    """The path of Docker's command line, with `docker stack`."""
    program = shutil.which("docker")
    if program is None or subprocess.run([program, "stack", "--help"], check=False, capture_output=True).returncode:
        pytest.skip("no docker command line with `docker stack`")
    return program


class Swarm:
    """The stack; `close` removes all of it, and the swarm."""

    def __init__(self, engine: DockerEngine, program: str, folder: Path) -> None:
        self.engine = engine
        self.port = free_port()
        self._program = program
        self._images = Compose(engine, "", folder)
        serving = json.loads((folder / "override.json").read_text())["services"]["serving"]
        self._files = (ROOT / "control_plane" / "swarm.yaml", folder / "stack.json")
        self._files[1].write_text(json.dumps({"version": "3.8", "services": {"serving": serving}}))
        (folder / "envoy.yaml").write_text(render_bootstrap(["control-plane:18000"]))
        self._environment = {
            **os.environ,
            "DOCKER_HOST": engine.url,
            "MODELPLANE_IMAGE": "modelplane-test:1",
            "INSTANCE_IMAGE": "modelplane-test-serving:1",
            "ETCD_IMAGE": "modelplane-test-etcd:1",
            "ENVOY_IMAGE": "modelplane-test-envoy:1",
            "ENVOY_BOOTSTRAP": str(folder / "envoy.yaml"),
            "MODELS": str(folder / "models"),
            "GRPC_PORT": str(self.port),
            "REST_PORT": str(free_port()),
            "INSTANCE_MEMORY": "1g",
        }

    def build(self) -> None:
        self._images.build()

    def init(self) -> None:
        """Make the engine a swarm of one node, which holds all three members of etcd."""
        # The engine would make this bridge under one name for all engines of a machine.
        bridge = "com.docker.network.bridge"
        options = (f"--opt={bridge}.name=mp-{os.getpid()}", f"--opt={bridge}.enable_icc=false")
        self("network", "create", "-d", "bridge", "--subnet", _GATEWAY, *options, "docker_gwbridge")
        listen = ("--advertise-addr", "127.0.0.1", "--listen-addr", f"127.0.0.1:{free_port()}")
        try:
            self("swarm", "init", *listen, "--default-addr-pool", _POOL)
        except AssertionError as error:
            pytest.skip(f"the engine can't be a swarm here: {error}")
        labels = [f"--label-add=etcd-{number}=true" for number in range(3)]
        self("node", "update", *labels, self("node", "ls", "-q").strip())

    def __call__(self, *arguments: str, timeout: float = 120) -> str:
        """A command of docker; what it prints."""
        done = subprocess.run(
            [self._program, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self._environment,
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}\n{done.stdout[-2000:]}"
        return done.stdout

    def deploy(self) -> None:
        """Returns before anything runs."""
        files = [argument for file in self._files for argument in ("-c", str(file))]
        self("stack", "deploy", "--resolve-image=never", *files, _STACK)

    def service(self, name: str, *arguments: str) -> None:
        """A command of `docker service` that takes the service last; returns at once."""
        self("service", *arguments, "--detach", f"{_STACK}_{name}")

    def scale(self, name: str, replicas: int) -> None:
        self("service", "scale", "--detach", f"{_STACK}_{name}={replicas}")

    def update(self, name: str) -> str:
        """How far the last update of a service is."""
        return str(self.engine.api.inspect_service(f"{_STACK}_{name}").get("UpdateStatus", {}).get("State", ""))

    def containers(self, service: str) -> list[str]:
        """Ids, of those that run, healthy or not."""
        label = f"com.docker.swarm.service.name={_STACK}_{service}"
        return sorted(one["Id"] for one in self.engine.api.containers(filters={"label": label}))

    def healthy(self, service: str) -> list[str]:
        """Ids, of those that do their work."""
        return [container for container in self.containers(service) if self._works(service, container)]

    def _works(self, service: str, container: str) -> bool:
        try:
            if service.startswith("etcd"):  # it has no health check in a stack
                self.engine.execute(container, "/usr/local/bin/etcdctl", "endpoint", "health")
                return True
            state = self.engine.api.inspect_container(container)["State"]
        except Exception as error:  # it may have ended meanwhile
            if not isinstance(error, AssertionError) and type(error).__module__ != "docker.errors":
                raise
            return False
        return bool(state.get("Health", {}).get("Status") == "healthy")

    async def all_healthy(self, service: str, number: int, but: frozenset[str] = frozenset()) -> list[str]:
        """Wait until exactly so many run and are healthy, none of `but` among them."""

        def right() -> bool:
            running = self.containers(service)
            return len(running) == number and not but & set(running) and self.healthy(service) == running

        await eventually(right, f"{number} of {service}, healthy", 90)
        return self.containers(service)

    def received(self, container: str) -> int:
        """Packets from its networks."""
        pid: Any = self.engine.api.inspect_container(container)["State"]["Pid"]
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
        return sum(int(line.split()[2]) for line in lines if line.strip().startswith("eth"))

    async def shared_by(self, containers: list[str]) -> None:
        """Wait until each of them gets more than half of its fair share of the load."""
        before = {container: self.received(container) for container in containers}

        def all_share() -> bool:
            received = [self.received(container) - before[container] for container in containers]
            return sum(received) > 1000 and min(received) > sum(received) / len(received) / 2

        await eventually(all_share, f"each of {len(containers)} gets its share", 30)

    async def remove(self) -> None:
        """As docs/swarm.md tells: the instances first, so that they drain, and then the rest."""
        self.scale("serving", 0)
        await self.all_healthy("serving", 0)
        self("stack", "rm", _STACK)
        label = f"com.docker.stack.namespace={_STACK}"
        await eventually(
            lambda: not self.engine.api.containers(all=True, filters={"label": label}), "no container is left", 60
        )

    def close(self) -> None:
        """Nothing of it is left."""
        for command in (("swarm", "leave", "--force"), ("network", "rm", "docker_gwbridge")):
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self(*command)
        for container in self.engine.api.containers(all=True):
            self.engine.api.remove_container(container, force=True, v=True)
        # The engine keeps the bridge while the swarm's own endpoint is in it.
        subprocess.run(["ip", "link", "delete", f"mp-{os.getpid()}"], check=False, capture_output=True)
