"""The examples as a person runs them: training prints what it reached, the client prints right answers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelplane.local.models import EXAMPLES, Source, config_file, examples_folder, examples_there
from tests.support.processes import ChildProcess, free_port, wait_for_port

pytestmark = pytest.mark.scenario


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(examples_folder() / script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The models, and what their training printed."""
    folder = tmp_path_factory.mktemp("models")
    return folder, run("train.py", str(folder))


def test_the_second_version_is_measurably_better(trained: tuple[Path, str]) -> None:
    """Waits for the training."""
    rates = dict(re.findall(r"^digits version (\d): .*, ([\d.]+)% of 360 held-out", trained[1], re.MULTILINE))
    assert 85 < float(rates["1"]) < float(rates["2"]) - 5
    assert float(rates["2"]) > 96


def test_whole_models_and_nothing_else_are_left(trained: tuple[Path, str]) -> None:
    """Waits for a second run, which finds all there."""
    folder = trained[0]
    assert examples_there(folder)
    assert sorted(child.name for child in folder.iterdir()) == sorted(EXAMPLES)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert run("train.py", str(folder)).count("there already") == 3
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_the_client_gets_right_answers_from_one_plain_server(trained: tuple[Path, str], tmp_path: Path) -> None:
    """The client knows nothing of modelplane. Waits for the server's port, which opens when all models are loaded."""
    config, port = tmp_path / "models.config", free_port()
    config.write_text(config_file([Source(name, trained[0] / name) for name in EXAMPLES]))
    command = [sys.executable, "-m", "modelplane", "model-server", f"--port={port}", f"--model_config_file={config}"]
    with ChildProcess([*command, "--bind_address=127.0.0.1"], tmp_path / "server.log") as server:
        wait_for_port(port, server, 60.0)
        check_answers(run("predict.py", f"127.0.0.1:{port}"))


def check_answers(output: str) -> None:
    """What the client prints of both models and both versions."""
    assert "half_plus_two version 1: x = [1, 2, 5] -> y = [2.5, 3.0, 4.5]" in output
    rows = {line[:18].strip(): re.findall(r"(\d)(?: \(\d+%\))?(?:\s|$)", line[18:]) for line in output.splitlines()}
    assert len(rows["what was written"]) == 6
    assert rows["digits version 2"] == rows["what was written"]
    assert rows["digits version 1"] != rows["what was written"]
