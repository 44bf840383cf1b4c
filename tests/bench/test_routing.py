"""`python -m bench.routing` as a person starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import upstream
from tests.support.processes import free_port

ROOT = Path(__file__).resolve().parent.parent.parent


@contextmanager
def bench(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The benchmark, whose temporary files are in `folder`; so are its children's command lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.routing", *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    with bench(folder, *arguments) as process:
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err


def processes_of(folder: Path) -> list[str]:
    """Command lines that name `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if str(folder) in text:
            found.append(text)
    return found


@pytest.mark.scenario
def test_a_tiny_run_prints_the_tables_and_writes_every_figure(tmp_path: Path) -> None:
    """Waits for two Envoys and ten short measurements, each of which has to cost Envoy some hundredths of a second."""
    out = tmp_path / "figures.json"
    code, printed, progress = run(
        tmp_path, "--generator", "python", "--rounds", "1", "--requests", "600", "--json", str(out)
    )
    assert code == 0, progress
    assert "model router (Lua), pinned" in printed
    assert "≤ 1.07" in printed
    assert "OK 600" in printed
    assert progress.count("round 1/1") == 10
    figures = json.loads(out.read_text())
    assert {(one["target"], one["size"]) for one in figures["targets"]} == {
        (target, size) for target in ("direct", "header", "routed", "pinned", "named") for size in (200, 614400)
    }
    assert figures["machine"]["cores"] >= 1
    assert [row["limit"] for row in figures["budgets"]] == [1.25, 1.07, None, None]
    assert not processes_of(tmp_path)


@pytest.mark.scenario
def test_ctrl_c_stops_everything(tmp_path: Path) -> None:
    """Waits for two Envoys and the first measurement, then interrupts an endless run."""
    with bench(tmp_path, "--generator", "python", "--rounds", "1000", "--requests", "60") as process:
        assert process.stderr
        assert any("round 1/1000" in line for line in process.stderr), "it ended before it was interrupted"
        assert len(processes_of(tmp_path)) >= 2
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "everything that was started is stopped" in process.stderr.read()
    deadline = time.monotonic() + 10
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not processes_of(tmp_path)


@pytest.mark.scenario
def test_a_stack_that_runs_is_measured_from_outside(tmp_path: Path) -> None:
    """Waits for the answering Envoy, which stands for a stack that somebody else started."""
    with upstream.start("envoy", tmp_path, (), 8) as instance:
        target = f"127.0.0.1:{instance.port}"
        code, printed, progress = run(
            tmp_path,
            "--target",
            target,
            "--generator",
            "python",
            "--rounds",
            "1",
            "--requests",
            "40",
            "--sizes",
            "1KiB",
        )
    assert code == 0, progress
    assert "1 KiB request bodies" in printed
    assert "1.00 (1.00–1.00)" in printed
    assert "budget" not in printed.lower()


def test_a_target_that_does_not_answer_is_named(tmp_path: Path) -> None:
    target = f"127.0.0.1:{free_port()}"
    code, printed, said = run(tmp_path, "--target", target, "--generator", "python")
    assert (code, printed) == (1, "")
    assert f"bench.routing: error: a probe of model 'half_plus_two' at {target}" in said
    assert "UNAVAILABLE" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sizes", "3 furlongs"], "is not a size"),
        (["--targets", "header,foo"], "'foo' is none of direct, header"),
        (["--target", "localhost"], "is not HOST:PORT"),
        (["--rounds", "0"], "not above 0"),
        (["--json", "/nonexistent/x.json"], "no folder /nonexistent"),
    ],
)
def test_wrong_usage_is_named(tmp_path: Path, arguments: list[str], said: str) -> None:
    code, _, err = run(tmp_path, *arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
