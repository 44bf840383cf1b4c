"""What a user can get wrong with `modelplane monitor --docker`, without an engine."""

from __future__ import annotations

import signal
import sys
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
