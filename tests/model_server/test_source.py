"""Version policies and version folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from model_server.errors import Code, ServingError
from model_server.messages import model_server_config_pb2
from model_server.source import Latest, ModelSource, Specific, choose, poll, read_policy, version_of


@pytest.mark.parametrize(
    ("folder", "version"),
    [("7", 7), ("007", 7), ("0", 0), ("v5", None), ("4.5", None), (".tmp3", None), ("", None), ("-1", None)],
)
def test_version_folder(folder: str, version: int | None) -> None:
    assert version_of(folder) == version


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Latest(1)),
        ("latest { }", Latest(1)),
        ("latest { num_versions: 2 }", Latest(2)),
        ("all { }", Latest(None)),
        ("specific { versions: 3 versions: 1 }", Specific(frozenset({1, 3}))),
        ("specific { }", Specific(frozenset())),
    ],
)
def test_policy(text: str, policy: Latest | Specific) -> None:
    config = model_server_config_pb2.ModelConfig()
    text_format.Parse(f"model_version_policy {{ {text} }}" if text else "", config)
    assert read_policy(config) == policy


@given(st.sets(st.integers(0, 50)), st.integers(1, 5))
def test_latest_is_the_highest_on_disk(on_disk: set[int], count: int) -> None:
    chosen = choose(Latest(count), on_disk)
    assert len(chosen) == min(count, len(on_disk))
    assert all(version > other for version in chosen for other in on_disk - chosen)
    assert choose(Latest(None), on_disk) == on_disk


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_specific_is_what_of_it_is_on_disk(wanted: set[int], on_disk: set[int]) -> None:
    assert choose(Specific(frozenset(wanted)), on_disk) == wanted & on_disk


def test_one_missing_base_path_fails_the_whole_poll(tmp_path: Path) -> None:
    (tmp_path / "good" / "1").mkdir(parents=True)
    good = ModelSource("good", tmp_path / "good", Latest())
    missing = ModelSource("missing", tmp_path / "missing", Latest())
    assert poll([good]) == {"good": {1: tmp_path / "good" / "1"}}
    with pytest.raises(ServingError, match=r"Could not find base path .*/missing for servable missing") as caught:
        poll([good, missing])
    assert caught.value.code is Code.NOT_FOUND
