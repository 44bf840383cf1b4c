"""`python -m bench.xds` as a person starts it, as small as can be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.xds.__main__ import main
from bench.xds.figures import Figure, figures_table

ROOT = Path(__file__).resolve().parent.parent.parent


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.xds", *arguments]
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.scenario
def test_a_tiny_run_compares_every_figure_with_its_budget(tmp_path: Path) -> None:
    """Waits for etcd, control planes, an Envoy and a handful of simulated ones."""
    small = ("--rounds", "1", "--models", "20", "--sizes", "5,10", "--changes", "3", "--crowds", "10:5")
    out = tmp_path / "figures.json"
    done = run(tmp_path, *small, "--fleet", "5", "--requests", "3", "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert "cold start with 20 models" in done.stdout
    assert "≤ 400 MiB" in done.stdout
    figures = json.loads(out.read_text())["figures"]
    assert [figure["limit"] for figure in figures if figure["limit"]] == [3, 400, 400, 1.2, 1.2, 10, 30]
    assert all(figure["seen"] > 0 for figure in figures if figure["unit"] != "KiB")


def test_a_figure_is_held_against_its_budget() -> None:
    under, over = Figure("a", [1.0, 3.0, 2.0], "s", 2.0), Figure("b", [5.0, 7.0, 6.0], "ms", 5.0)
    assert under.row() == ["a", "2.00 s", "1.00 s – 3.00 s", "≤ 2.00 s", "under"]
    assert over.row() == ["b", "6.00 ms", "5.00 ms – 7.00 ms", "≤ 5.00 ms", "OVER"]
    assert figures_table([under, over]).endswith("OVER")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "foo"], "'foo' is none of cold-start"),
        (["--crowds", "10"], "'10' is not MODELS:STREAMS"),
        (["--rounds", "0"], "not above 0"),
        (["--json", "/nonexistent/x.json"], "no folder /nonexistent"),
    ],
)
def test_wrong_usage_is_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
