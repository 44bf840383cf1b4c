"""A real Docker Engine for tests, and containers in it. Nothing is pulled: the image is empty, and each container sees
this machine's programs, this interpreter and this checkout, read-only, where they are.

Run by root on a machine with dockerd, the engine is the tests' own, in a folder of its own, without a default bridge
and without touching iptables. Else DOCKER_HOST's is borrowed, if it is on this machine; what was made there is removed.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ChildProcess

ROOT = Path(__file__).parents[2]
IMAGE = "localhost:1/modelplane-test/tensorflow/serving:2.19.0"
PLAIN_IMAGE = "modelplane-test/python:3"
_START = 30.0


class NoEngine(Exception):  # noqa: N818 - a reason to skip
    """Why no engine can be had here."""


class DockerEngine:
    """Use `start`; a context manager."""

    def __init__(self, url: str, daemon: list[str] | None, folder: Path | None) -> None:
        import docker

        self._docker = docker
        self.url = url
        self._daemon = daemon
        self.folder = folder
        self._child: ChildProcess | None = None
        self._made: list[str] = []
        self._networks: list[str] = []
        self._api: Any = None

    @classmethod
    def start(cls) -> DockerEngine:
        """Raises NoEngine."""
        engine = cls._choose()
        try:
            if engine._daemon is not None:
                engine.run()
            engine._prepare()
        except BaseException:
            engine.close()
            raise
        return engine

    @classmethod
    def _choose(cls) -> DockerEngine:
        dockerd = shutil.which("dockerd") or shutil.which("dockerd", path="/usr/sbin:/usr/local/sbin")
        if os.geteuid() == 0 and dockerd:
            # Sockets have short paths: not below pytest's folders.
            folder = Path(tempfile.mkdtemp(prefix="mp-docker-"))
            (folder / "daemon.json").write_text(json.dumps(_own_networks()))
            command = [
                dockerd,
                *(f"--data-root={folder / 'data'}", f"--exec-root={folder / 'exec'}", f"--pidfile={folder / 'pid'}"),
                *(f"--host=unix://{folder / 'socket'}", f"--config-file={folder / 'daemon.json'}"),
                *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--ip-forward=false"),
            ]
            return cls(f"unix://{folder / 'socket'}", command, folder)
        url = os.environ.get("DOCKER_HOST", "")
        if url.startswith("unix://"):
            return cls(url, None, None)
        raise NoEngine("no Docker engine: it takes root and dockerd, or DOCKER_HOST=unix://…")

    @property
    def own(self) -> bool:
        """Whether it was started here, and so may be stopped."""
        return self._daemon is not None

    @property
    def api(self) -> Any:
        """The SDK's low-level client."""
        if self._api is None:
            self._api = self._docker.APIClient(self.url, timeout=30)
        return self._api

    def run(self) -> None:
        """Start the engine's process (again)."""
        assert self._daemon is not None
        assert self.folder is not None
        log = self.folder / "dockerd.log"
        # Its own programs (docker-proxy, iptables) are where a PATH may not lead.
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
        self._child = ChildProcess(self._daemon, log, {"PATH": path})
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline and self._child.alive():
            if _answers(self.folder / "socket"):
                return
            time.sleep(0.05)
        last = (log.read_text().strip().splitlines() or ["nothing"])[-1]
        raise NoEngine(f"dockerd does not start within {_START:.0f} s; its last words: {last[-500:]}")

    def stop(self) -> None:
        """End the engine's process, as an upgrade of it does."""
        assert self._child is not None
        self._forget_client()
        self._child.stop(40)

    def live_restore(self, on: bool) -> None:
        """Whether containers outlive the engine's process."""
        assert self._child is not None
        assert self.folder is not None
        file = self.folder / "daemon.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "live-restore": on}))
        self._child.send(signal.SIGHUP)
        deadline = time.monotonic() + _START
        while self.api.info()["LiveRestoreEnabled"] is not on:
            assert time.monotonic() < deadline, "the engine did not take its new configuration"
            time.sleep(0.05)

    def network(self, name: str) -> str:
        name = f"mp-{os.getpid()}-{name}"
        self.api.create_network(name, driver="bridge")
        self._networks.append(name)
        return name

    def container(
        self,
        name: str,
        command: Sequence[str],
        network: str | None,
        *,
        image: str = PLAIN_IMAGE,
        labels: Mapping[str, str] | None = None,
        binds: Iterable[str] = (),
        **more: Any,
    ) -> str:
        """Make and start one; its id. `more` goes to create_container."""
        container = self.create(name, command, network, image=image, labels=labels, binds=binds, **more)
        self.api.start(container)
        return container

    def create(
        self,
        name: str,
        command: Sequence[str],
        network: str | None,
        *,
        image: str = PLAIN_IMAGE,
        labels: Mapping[str, str] | None = None,
        binds: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        host: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> str:
        options = {"init": True, "binds": [*_programs(), *binds], "network_mode": network or "none", **(host or {})}
        made = self.api.create_container(
            image,
            list(command),
            name=name,
            labels=dict(labels or {}),
            host_config=self.api.create_host_config(**options),
            environment={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
            **more,
        )
        self._made.append(made["Id"])
        return str(made["Id"])

    def execute(self, container: str, *command: str) -> None:
        """Run a program inside, to its end."""
        made = self.api.exec_create(container, list(command))["Id"]
        output = self.api.exec_start(made)
        code = self.api.exec_inspect(made)["ExitCode"]
        assert code == 0, f"{command} ended with {code}: {output!r}"

    def remove(self, container: str) -> None:
        with contextlib.suppress(self._docker.errors.NotFound):
            self.api.remove_container(container, force=True, v=True)
        with contextlib.suppress(ValueError):
            self._made.remove(container)

    def clear(self) -> None:
        """Remove all containers and networks that were made."""
        for container in list(self._made):
            self.remove(container)
        for network in self._networks:
            with contextlib.suppress(self._docker.errors.NotFound):
                self.api.remove_network(network)
        self._networks.clear()

    def _prepare(self) -> None:
        for image in (IMAGE, PLAIN_IMAGE):
            repository, _, tag = image.rpartition(":")
            self.api.import_image_from_data(_empty_image(), repository=repository, tag=tag)
        try:
            container = self.container(f"mp-{os.getpid()}-try", [sys.executable, "-c", "print('runs')"], None)
            code = self.api.wait(container, timeout=30)["StatusCode"]
            said = self.api.logs(container).decode(errors="replace")
        except self._docker.errors.APIError as error:
            raise NoEngine(f"the engine runs no containers here: {error.explanation}") from None
        if code or "runs" not in said:
            raise NoEngine(f"the engine's containers don't see this interpreter: code {code}, {said[-300:]}")
        self.remove(container)

    def _forget_client(self) -> None:
        if self._api is not None:
            self._api.close()
            self._api = None

    def close(self) -> None:
        """Leave nothing behind."""
        if self._daemon is None or (self._child is not None and self._child.alive()):
            with contextlib.suppress(self._docker.errors.DockerException):
                self.clear()
                if not self.own:
                    for image in (IMAGE, PLAIN_IMAGE):
                        self.api.remove_image(image, force=True)
        self._forget_client()
        if self._child is not None:
            self._child.stop(40)
        if self.folder is not None:
            _unmount(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> DockerEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def engine_or_skip() -> DockerEngine:
    """An engine, or the end of the test with the reason why there is none."""
    pytest.importorskip("docker", reason="the Docker SDK is not installed: it is the extra 'docker'")
    try:
        return DockerEngine.start()
    except NoEngine as reason:
        pytest.skip(str(reason))


def _own_networks() -> dict[str, Any]:
    """Where the engine takes its networks' addresses from: engines beside each other, which know nothing of each other,
    would all begin with the same ones."""
    pools = list(ipaddress.ip_network("10.128.0.0/9").subnets(new_prefix=20))
    first = os.getpid() % len(pools)
    taken = _routed()
    free = next(one for one in pools[first:] + pools[:first] if not any(one.overlaps(other) for other in taken))
    return {"default-address-pools": [{"base": str(free), "size": 24}]}


def _routed() -> list[ipaddress.IPv4Network]:
    """The networks to which this machine has routes, but for the default one."""
    found = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        _, destination, *_, mask = line.split()[:8]
        if int(mask, 16):
            octets = [bytes.fromhex(one)[::-1] for one in (destination, mask)]
            address, netmask = (str(ipaddress.IPv4Address(one)) for one in octets)
            found.append(ipaddress.IPv4Network(f"{address}/{netmask}"))
    return found


def _programs() -> list[str]:
    """This machine's programs, the interpreter and the checkout, as read-only binds, none below another."""
    wanted = ["/usr", "/bin", "/lib", "/lib64", sys.prefix, sys.base_prefix, str(ROOT)]
    found = sorted({path for path in wanted if Path(path).is_dir()})
    outer = [path for path in found if not any(path.startswith(f"{other}/") for other in found)]
    return [f"{path}:{path}:ro" for path in outer]


def _empty_image() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o777
        archive.addfile(folder)
    return buffer.getvalue()


def _answers(path: Path) -> bool:
    # Not by the SDK, which leaves its socket open where nobody listens.
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(str(path))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(100)
        except OSError:
            return False


def _unmount(folder: Path) -> None:
    """Network namespaces and overlays that a killed engine leaves mounted."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        where = line.split()[1]
        if where.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", where], check=False, capture_output=True, timeout=10)
