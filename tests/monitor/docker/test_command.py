"""What a user can get wrong with `modelplane monitor --docker`, without an engine."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from modelplane.commands.monitor import run as command
from monitor.config import MonitorConfig
from monitor.docker.config import DockerConfig
from monitor.docker.engine import Engine
from monitor.docker.service import run
from monitor.errors import MonitorError
from tests.support.docker_engine import ROOT
from tests.support.processes import ChildProcess, free_port
from tests.support.waiting import eventually

AS_NOBODY = (
    "-c",
    """
import os, sys
import docker, monitor.docker.service, modelplane.commands.monitor
from modelplane.cli import main
if os.geteuid() == 0:
    os.seteuid(65534)
sys.exit(main(sys.argv[1:]))
""",
)
"""Root may use every socket. The interpreter may be readable for root alone, so what is needed is imported first."""


def test_without_the_sdk_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(MonitorError, match=r"pip install 'modelplane\[docker\]'"):
        Engine(None)


@pytest.mark.parametrize(
    "config",
    [MonitorConfig(target="127.0.0.1:1"), MonitorConfig(model=("m",)), MonitorConfig(instance="i")],
    ids=["--target", "--model", "--instance"],
)
async def test_a_flag_for_one_server_is_refused_by_name(config: MonitorConfig, request: pytest.FixtureRequest) -> None:
    flag = request.node.callspec.id
    with pytest.raises(MonitorError, match=f"^{flag} is for one server"):
        await run(config, DockerConfig(docker=True))


def test_a_command_to_own_is_refused() -> None:
    with pytest.raises(MonitorError, match="give one of them"):
        command(["--docker", "--", "tensorflow_model_server"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"docker_url": "/var/run/docker.sock"}, "write unix:///path"),
        ({"docker_host_name": ""}, "it is empty"),
        ({"docker_wait": -1.0}, "between 0 and 86400 s"),
        ({"docker_at_exit": "kill"}, "neither leave nor drain"),
    ],
)
def test_bad_values_are_named(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DockerConfig(docker=True, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("foo://bar", r"^--docker-url 'foo://bar': .*; write unix:///path/to/docker.sock or tcp://HOST:PORT$"),
        ("", r"^DOCKER_HOST 'nonsense': .*; write unix:///path/to/docker.sock or tcp://HOST:PORT$"),
    ],
)
def test_an_address_that_is_none_is_refused_by_name(url: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", "nonsense")
    with pytest.raises(MonitorError, match=words):
        Engine(url or None)


def test_where_no_waiting_helps_one_line_names_the_socket_and_the_mend(tmp_path: Path) -> None:
    """A folder where a socket was to be mounted; a socket that this user may not use; a proxy that allows nothing."""
    pytest.importorskip("docker")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as forbidden, refusing() as port:
        forbidden.bind(str(tmp_path / "forbidden"))
        (tmp_path / "forbidden").chmod(0)
        module = ("-m", "modelplane")
        for program, url, words in (
            (module, f"unix://{tmp_path}/folder", "there is a folder, not a socket; mount the engine's socket there"),
            (AS_NOBODY, f"unix://{tmp_path}/forbidden", "Permission denied; run the monitor as a user who may use"),
            (module, f"tcp://127.0.0.1:{port}", "not allowed here; its proxy has to let GET of /version"),
        ):
            flags = ("monitor", "--docker", f"--docker-url={url}", f"--etcd=127.0.0.1:{free_port()}")
            with ChildProcess([sys.executable, *program, *flags], tmp_path / "log", {"PYTHONPATH": str(ROOT)}) as child:
                assert child.wait() == 2, child.output
                assert child.output.splitlines()[-1].startswith(f"modelplane monitor: error: {url}: {words}")
                assert "Traceback" not in child.output


@contextmanager
def refusing() -> Iterator[int]:
    """An HTTP server that answers 403 as a proxy of the socket does; its port."""

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"message": "not allowed here"}'
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: the test's output is its own."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


async def test_an_engine_that_never_answered_is_waited_for(tmp_path: Path) -> None:
    """Waits for the monitor's word, and for its end."""
    pytest.importorskip("docker")
    flags = (f"--docker-url=unix://{tmp_path}/absent", f"--etcd=127.0.0.1:{free_port()}")
    arguments = [sys.executable, "-m", "modelplane", "monitor", "--docker", *flags]
    with ChildProcess(arguments, tmp_path / "log", {"PYTHONPATH": str(ROOT)}) as child:
        await eventually(lambda: "so nothing is watched: No such file" in child.output, "its word")
        child.send(signal.SIGTERM)
        assert child.wait() == 0
        assert f"no Docker engine answers at unix://{tmp_path}/absent" in child.output
        assert "trying again until one does (another: --docker-url)" in child.output
        assert child.output.count("no Docker engine") == 1
        assert "Traceback" not in child.output


def test_an_engine_that_never_answered_is_waited_for_as_long_as_was_said(tmp_path: Path) -> None:
    pytest.importorskip("docker")
    flags = (f"--docker-url=unix://{tmp_path}/absent", "--docker-wait=0.1", f"--etcd=127.0.0.1:{free_port()}")
    arguments = [sys.executable, "-m", "modelplane", "monitor", "--docker", *flags]
    with ChildProcess(arguments, tmp_path / "log", {"PYTHONPATH": str(ROOT)}) as child:
        assert child.wait() == 2
        said = child.output.splitlines()[-1]
        assert "absent: No such file or directory; no engine has answered for 0.1 s (--docker-wait)" in said
