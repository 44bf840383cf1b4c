"""Which models' version folders have changed."""

from __future__ import annotations

from pathlib import Path

from monitor.folders import VersionFolders
from monitor.servables import WatchedModel


def test_a_version_that_comes_or_goes_and_a_folder_that_vanishes(tmp_path: Path) -> None:
    models = [WatchedModel(name, str(tmp_path / name)) for name in ("a", "b", "c")]
    for model in models:
        Path(model.base_path, "1").mkdir(parents=True)
    folders = VersionFolders()
    assert folders.changed(models) == ()
    assert folders.changed(models) == ()
    (tmp_path / "a" / "2").mkdir()
    (tmp_path / "b" / "1").rmdir()
    assert folders.changed(models) == ("a", "b")
    assert folders.changed(models) == ()
    (tmp_path / "c").rename(tmp_path / "d")
    assert folders.changed(models) == ("c",)


def test_what_cannot_be_seen_from_here_never_changes() -> None:
    elsewhere = [WatchedModel("none"), WatchedModel("remote", "gs://bucket/m"), WatchedModel("nul", "/a\0b")]
    folders = VersionFolders()
    assert folders.changed(elsewhere) == folders.changed(elsewhere) == ()
