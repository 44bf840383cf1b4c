"""`modelplane up` with all of its real processes: what it shows, what it serves, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelplane.local.models import examples_folder
from modelplane.local.ports import is_free
from tests.support import saved_models
from tests.support.processes import ChildProcess
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

ANY_PORTS = [f"--{name}-port=0" for name in ("grpc", "rest", "admin", "xds", "http", "etcd")]
STARTED = 120.0


def up(state: Path, *arguments: str, path: Path | None = None) -> ChildProcess:
    """Start `modelplane up`; `path` is a folder to be searched first for programs."""
    command = [sys.executable, "-m", "modelplane", "up", f"--state={state}", *ANY_PORTS, *arguments]
    env = {"PATH": f"{path}:{os.environ['PATH']}"} if path else {}
    return ChildProcess(command, state.with_suffix(".out"), env)


def program(folder: Path, name: str, script: str) -> Path:
    """A shell script that passes for a program; the folder to search for it."""
    folder.mkdir()
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return folder


def modelplane(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelplane", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def states(state: Path) -> dict[str, str]:
    """The STATE of each model that has one version, as `modelplane status` shows it."""
    out = modelplane("status", "--state", str(state)).stdout
    return dict(re.findall(r"^(\w+) +1 +(?:yes +)?(\w+ on .*)$", out, re.MULTILINE))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example models, trained once for all tests here."""
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, str(examples_folder() / "train.py"), str(folder)], check=True, timeout=120)
    return folder


def family(root: int) -> dict[int, str]:
    """All descendants of a process, each with its start time, so that a number used again isn't taken for it."""
    parents: dict[int, int] = {}
    births: dict[int, str] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid], births[pid] = int(fields[1]), fields[19]
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: births[pid] for pid in found - {root}}


def survivors(processes: dict[int, str]) -> dict[int, str]:
    left = {}
    for pid, birth in processes.items():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[19] == birth and fields[0] != "Z":
            left[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return left


def ports(output: str) -> list[int]:
    return sorted({int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", output)})


@pytest.fixture
def state(tmp_path: Path, models: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    shutil.copytree(models, folder / "models")
    return folder


async def test_one_command_shows_a_prediction_and_ctrl_c_leaves_nothing(state: Path) -> None:
    """Waits for the example client's output, then for the end after SIGINT."""
    with up(state, "--server=stand-in") as stack:
        await eventually(
            lambda: "digits version 1 " in stack.output or not stack.alive(), "the client's answers", STARTED
        )
        output = stack.output
        for step in ("etcd", "control plane", "Envoy", "model servers"):
            assert re.search(rf"^  {step} +[\d.]+ s", output, re.MULTILINE), output
        assert "half_plus_two version 1: x = [1, 2, 5] -> y = [2.5, 3.0, 4.5]" in output
        answers = dict(re.findall(r"^(what was written|digits version \d) +(.*)$", output, re.MULTILINE))
        assert re.findall(r"\d(?= \()", answers["digits version 2"]) == answers["what was written"].split()

        status = modelplane("status", "--state", str(state))
        assert status.returncode == 0, status.stderr
        assert re.search(r"^digits +2 +yes +ready on tfs-0, tfs-1$", status.stdout, re.MULTILINE), status.stdout

        envoys = modelplane("get", "envoys", "--state", str(state))
        assert envoys.returncode == 0, envoys.stderr
        assert re.search(r"^local +envoy 1\.40\.0 +local .* has everything$", envoys.stdout, re.MULTILINE), (
            envoys.stdout
        )

        def shows_load() -> bool:
            listed = json.loads(modelplane("get", "instances", "-o", "json", "--state", str(state)).stdout)
            return all(row["load"] for row in listed["instances"])

        await eventually(shows_load, "the servers' own figures")

        second = modelplane("up", f"--state={state}", *ANY_PORTS)
        assert second.returncode == 1
        assert f"{state} is in use by another `modelplane up` (pid {stack.pid})" in second.stderr
        grpc_port = re.findall(r"^  gRPC +127\.0\.0\.1:(\d+)$", output, re.MULTILINE)[0]
        taken = modelplane("up", f"--state={state}-2", *ANY_PORTS, f"--grpc-port={grpc_port}")
        assert taken.returncode == 1
        assert re.fullmatch(
            rf"modelplane up: error: port {grpc_port} \(grpc\) is taken by .*envoy.* \(pid \d+\); "
            r"choose another with --grpc-port\n",
            taken.stderr,
        )

        processes = family(stack.pid)
        assert len(processes) >= 7  # etcd, control plane, Envoy, 2 monitors, 2 servers
        stack.send(signal.SIGINT)
        assert stack.wait(60) == 130
        assert survivors(processes) == {}
        assert [port for port in ports(output + status.stdout) if not is_free("127.0.0.1", port)] == []
        assert "Ending: waiting for tfs-0, tfs-1 to finish their requests" in stack.output
        assert not (state / "stack.json").exists()


async def test_the_table_says_why_a_model_is_not_served(state: Path, tmp_path: Path, models: Path) -> None:
    """One that loads, one that is broken, one without its variables; the server is what stands on PATH as
    tensorflow_model_server. Waits for the good model to be ready while the
    slow one loads, and for the others to be given up; then kills a monitor and waits for its instance's return; then
    kills `up` itself and waits for all processes to go."""
    saved_models.slow_to_load(tmp_path / "slow", seconds=8.0)
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "saved_model.pb").write_bytes(b"nonsense")
    shutil.copytree(models / "half_plus_two", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "1" / "variables")
    mine = [f"--model={name}={tmp_path / name}" for name in ("broken", "bare", "slow")]
    script = f'exec {sys.executable} -m modelplane model-server --bind_address=127.0.0.1 "$@"'
    path = program(tmp_path / "bin", "tensorflow_model_server", script)
    with up(state, f"--model=good={models / 'half_plus_two'}", *mine, "--instances=1", path=path) as stack:
        await eventually((state / "stack.json").exists, "the registry", STARTED)
        await eventually(
            lambda: {"good": "ready on tfs-0", "slow": "loading on tfs-0"}.items() <= states(state).items(),
            "the good model beside the one that loads",
            STARTED,
        )
        await eventually(lambda: "Point any" in stack.output or not stack.alive(), "the models to be settled", STARTED)
        assert f"1 x {path / 'tensorflow_model_server'}" in stack.output
        status = modelplane("status", "--state", str(state)).stdout
        assert re.search(r"^good +1 +yes +ready on tfs-0$", status, re.MULTILINE), status
        assert re.search(r"^broken version 1 on tfs-0: .*saved_model\.pb", status, re.MULTILINE), status
        assert re.search(
            r"^bare version 1 on tfs-0: it is AVAILABLE, but .*: FAILED_PRECONDITION: Could not find variable",
            status,
            re.MULTILINE,
        ), status
        assert states(state) == {
            "good": "ready on tfs-0",
            "slow": "ready on tfs-0",
            "broken": "failed on tfs-0",
            "bare": "failed on tfs-0",
        }

        before = family(stack.pid)
        monitor = next(pid for pid, command in survivors(before).items() if "modelplane monitor" in command)
        server = next(
            pid
            for pid, command in survivors(before).items()
            if "modelplane model-server" in command and "modelplane monitor" not in command
        )
        os.kill(monitor, signal.SIGKILL)
        await eventually(lambda: server not in survivors(before), "the server that it left to be ended")
        await eventually(lambda: "tfs-0 was ended by SIGKILL; it is started again in" in stack.output, "the report")
        address = json.loads((state / "stack.json").read_text())["etcd"]
        await eventually(
            lambda: (
                re.search(
                    r"^good +1 +yes +ready on tfs-0$", modelplane("status", "--etcd", address).stdout, re.MULTILINE
                )
                and survivors(family(stack.pid)).keys() - before.keys()
            ),
            "the instance's return",
            60.0,
        )
        processes = family(stack.pid)
        stack.kill()
        await eventually(lambda: not survivors(processes), "everything to go after SIGKILL", 60.0)


async def test_a_core_process_that_cannot_start_is_one_clear_line(state: Path, tmp_path: Path) -> None:
    """An Envoy that ends at once. Waits for the end."""
    path = program(tmp_path / "bin", "envoy", "echo cannot do that >&2; exit 3")
    with up(state, "--server=stand-in", path=path) as stack:
        assert stack.wait(60) == 1
        log = state / "logs" / "envoy.log"
        assert stack.output.endswith(
            f"modelplane up: error: envoy ended with exit code 3: cannot do that (log: {log})\n"
        )
