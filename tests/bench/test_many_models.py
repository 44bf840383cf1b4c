"""The benchmark of many models runs, in small, and finds what it is to find."""

from __future__ import annotations

import re

import pytest

from bench.many_models.__main__ import main


@pytest.mark.scenario
def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Waits for a monitor to register sixty models, and for one new version."""
    assert main(["--models", "60", "--seconds", "0", "--changes", "1", "--kinds", "surprise"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^  60 models +\d+\.\d\d s ", output, re.MULTILINE)
    assert re.search(r"^  surprise +1 +\d+\.\d+ s", output, re.MULTILINE)
