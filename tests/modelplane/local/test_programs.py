"""How commands are shown to a person, who copies them into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from modelplane.local.programs import shown_binary, shown_path


def test_a_path_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "logs" / "up.log") == "logs/up.log"
    assert shown_path(Path("/elsewhere/x")) == "/elsewhere/x"
    assert shlex.split(shown_path(tmp_path / "my state")) == ["my state"]


def test_a_program_is_named_so_that_this_shell_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert shown_binary("sh") == "sh"
    assert Path(shown_binary("etcdctl")).name == "etcdctl"
    assert Path(shown_binary("etcdctl")).is_absolute()
    assert shown_binary("no-such-program") == "no-such-program"
