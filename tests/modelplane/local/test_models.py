"""Models of the user's own: each mistake has a sentence that mends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelplane.errors import UserError
from modelplane.local.models import (
    EXAMPLES,
    Source,
    config_file,
    examples_folder,
    examples_there,
    parse_model,
    parse_models,
)


def saved_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").touch()
    return folder


def test_a_folder_of_versions(tmp_path: Path) -> None:
    saved_model(tmp_path / "m" / "3")
    (tmp_path / "m" / "notes").mkdir()
    assert parse_model(f"m={tmp_path}/m") == Source("m", tmp_path / "m")
    assert parse_model(f"a/b@c={tmp_path}/m/../m").path == tmp_path / "m"


def message(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_model(text)
    return str(caught.value)


@pytest.mark.parametrize("text", ["mnist", "=x", "mnist=", ""])
def test_what_is_not_name_and_path(text: str) -> None:
    assert message(text) == f"--model {text}: write NAME=PATH, for example --model mnist=/models/mnist"


def test_no_such_folder(tmp_path: Path) -> None:
    assert message(f"m={tmp_path}/none") == f"--model m={tmp_path}/none: there is no folder {tmp_path}/none"


def test_paths_that_no_system_call_takes(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert message(f"m={tmp_path}/{'x' * 300}").endswith(": File name too long")
    assert "loop" in message(f"m={tmp_path}/loop").partition(": ")[2]
    assert message(f"\udcff={tmp_path}").endswith("name and path have to be UTF-8")


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "m").touch()
    assert "is a file; give the folder that holds the model's version folders" in message(f"m={tmp_path}/m")


def test_a_version_instead_of_the_model(tmp_path: Path) -> None:
    saved_model(tmp_path / "m" / "1")
    assert message(f"m={tmp_path}/m/1").endswith(f"is itself a version; give the folder above it, {tmp_path}/m")


def test_a_saved_model_without_a_version_around_it(tmp_path: Path) -> None:
    saved_model(tmp_path / "m")
    assert f"Move its content into {tmp_path}/m/1 and give {tmp_path}/m again" in message(f"m={tmp_path}/m")


def test_no_version_in_it(tmp_path: Path) -> None:
    (tmp_path / "m" / "v1").mkdir(parents=True)
    assert f"holds no version folder; expected something like {tmp_path}/m/1/saved_model.pb" in message(
        f"m={tmp_path}/m"
    )


def test_empty_versions(tmp_path: Path) -> None:
    (tmp_path / "m" / "9").mkdir(parents=True)
    (tmp_path / "m" / "10").mkdir(parents=True)
    assert message(f"m={tmp_path}/m").endswith(f"has a saved_model.pb; expected {tmp_path}/m/10/saved_model.pb")


def test_a_name_given_twice(tmp_path: Path) -> None:
    saved_model(tmp_path / "m" / "1")
    with pytest.raises(UserError, match="given twice"):
        parse_models([f"m={tmp_path}/m", f"m={tmp_path}/m"])


def test_the_servers_config_file_keeps_two_versions_and_quotes_names() -> None:
    text = config_file([Source('a"b\\c', Path("/models/é"))])
    assert 'name: "a\\"b\\\\c"' in text
    assert 'base_path: "/models/é"' in text
    assert "model_version_policy { latest { num_versions: 2 } }" in text
    assert config_file([]) == "model_config_list {\n}\n"


def test_the_examples_are_found() -> None:
    assert (examples_folder() / "train.py").is_file()
    assert (examples_folder() / "predict.py").is_file()


def test_the_examples_are_there_when_all_are(tmp_path: Path) -> None:
    for name, versions in EXAMPLES.items():
        for version in versions:
            assert not examples_there(tmp_path)
            (tmp_path / name / str(version)).mkdir(parents=True)
    assert examples_there(tmp_path)
