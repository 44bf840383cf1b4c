"""What a server has to be like to be managed, what of it is its own, and what is known of its machine and its disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from pathlib import Path

import pytest

from monitor.config import MonitorConfig
from monitor.consent import own_models, started_empty
from monitor.errors import MonitorError
from monitor.found import Folders
from monitor.found_watch import FoundWatch
from monitor.memory import memory_beside, parse_memory
from monitor.model_config import ModelConfigFile, parse_whole_config
from monitor.server_flags import ServerFlags, read_flags
from registry.found import Found
from tests.support.waiting import eventually

SERVER = ("tensorflow_model_server", "--port=8500")
IMAGE = ("/usr/bin/tf_serving_entrypoint.sh",)


@pytest.mark.parametrize(
    ("command", "environment"),
    [(SERVER, {}), (IMAGE, {}), ((*IMAGE, "--rest_api_port=1"), {"MODEL_BASE_PATH": "/models"})],
)
def test_a_server_without_models_starts_with_an_empty_list(
    command: tuple[str, ...], environment: dict[str, str]
) -> None:
    with started_empty(command, read_flags(command, environment), environment) as fit:
        flags = read_flags(fit, environment)
        file = ModelConfigFile(Path(flags.model_config_file))
        file.load()
        assert (file.models, file.whole(), own_models(flags, file.whole())) == ((), (), {})
        assert (flags.load_retries, flags.load_threads) == (0, 4)
        assert fit[: len(command)] == list(command)
    assert not file.path.exists()


def test_what_the_command_says_wins() -> None:
    command = (*SERVER, "--max_num_load_retries", "2", "--num_load_threads=1")
    with started_empty(command, read_flags(command, {}), {}) as fit:
        assert (read_flags(fit, {}).load_retries, read_flags(fit, {}).load_threads) == (2, 1)
    for own in (("--model_base_path=/m",), ("--model_config_file=/f",)):
        with started_empty((*SERVER, *own), read_flags((*SERVER, *own), {}), {}) as fit:
            assert fit == [*SERVER, *own]
    with started_empty(IMAGE, read_flags(IMAGE, {"MODEL_NAME": "m"}), {"MODEL_NAME": "m"}) as fit:
        assert fit == list(IMAGE)


def test_its_own_models_are_kept_as_they_are() -> None:
    (only,) = own_models(ServerFlags(model_name="m", model_base_path="/m"), None).values()
    assert (only.name, only.base_path, only.model_platform, only.HasField("model_version_policy")) == (
        *("m", "/m", "tensorflow"),
        False,
    )
    configs = parse_whole_config('model_config_list { config { name: "f" base_path: "/f" model_platform: "x" } }')
    assert list(own_models(ServerFlags(model_base_path="/m"), configs)) == ["f"]


@pytest.mark.parametrize(
    ("flags", "named", "told"),
    [
        (ServerFlags(config_poll_wait=1), (), "re-reads its model config file"),
        (ServerFlags(poll_wait=0), (), "does not look at its disk again"),
        (ServerFlags(poll_wait=-1), (), "does not look at its disk again"),
        (None, ("m",), "model m is not known"),
    ],
)
def test_a_server_that_can_not_be_managed_is_refused(
    flags: ServerFlags | None, named: tuple[str, ...], told: str
) -> None:
    with pytest.raises(MonitorError, match=told):
        own_models(flags, None, named)


def test_a_file_with_something_unknown_is_refused(tmp_path: Path) -> None:
    """It would be lost with the first reload."""
    file = ModelConfigFile(tmp_path / "f")
    file.path.write_text('model_config_list { config { name: "m" base_path: "/m" newer_field: 1 } }')
    file.load()
    with pytest.raises(MonitorError, match=r"--manage: model config file .*newer_field"):
        file.whole()


@pytest.mark.parametrize(("text", "size"), [("8GiB", 2**33), ("1024", 1024), ("2TiB", 2**41), ("5MiB", 5 * 2**20)])
def test_memory_is_read(text: str, size: int) -> None:
    assert parse_memory(text) == size
    assert MonitorConfig(memory=text).memory_bytes(owned=False) == size


@pytest.mark.parametrize("text", ["8G", "much", "-1", "1.5GiB"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"memory .*8GiB"):
        MonitorConfig(memory=text)
    with pytest.raises(ValueError, match="label 'gpu': write NAME=VALUE"):
        MonitorConfig(label=("gpu",))


def test_the_memory_beside_a_server_is_the_container_s_if_they_share_it(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert memory_beside(shared=True, root=tmp_path) == 0
    write("proc/meminfo", "MemTotal:       16 kB\nMemFree: 1 kB\n")
    assert [memory_beside(shared=one, root=tmp_path) for one in (True, False)] == [16384, 16384]
    write("proc/self/cgroup", "0::/pod/server\n")
    write("sys/fs/cgroup/pod/server/memory.max", "max\n")
    assert memory_beside(shared=False, root=tmp_path) == 16384
    write("sys/fs/cgroup/pod/memory.max", "4096\n")
    assert [memory_beside(shared=one, root=tmp_path) for one in (True, False)] == [4096, 0]
    write("proc/self/cgroup", "5:memory:/box\n")
    write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory_beside(shared=False, root=tmp_path) == 16384
    write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "8192\n")
    assert memory_beside(shared=True, root=tmp_path) == 8192


def version(base: Path, number: str, size: int = 10) -> Path:
    (base / number / "variables").mkdir(parents=True)
    (base / number / "variables" / "data").write_bytes(bytes(size))
    (base / number / "saved_model.pb").write_bytes(b"")
    return base / number


def test_only_folders_with_a_model_are_versions(tmp_path: Path) -> None:
    version(tmp_path, "1", 5)
    version(tmp_path, "007", 7)
    version(tmp_path, "v3")
    (tmp_path / "4").mkdir()
    folders = Folders(settled=0.0)
    found = folders.look(str(tmp_path))
    assert {number: one.size for number, one in found.versions.items()} == {1: 5, 7: 7}
    assert folders.look(str(tmp_path)) is found, "nothing has changed, so nothing was measured anew"
    # A model file makes the folder a version; that it came shows in the folder's own time.
    (tmp_path / "4" / "saved_model.pb").write_bytes(b"x")
    assert set(folders.look(str(tmp_path)).versions) == {1, 4, 7}
    assert folders.look(str(tmp_path / "gone")).error == "No such file or directory"
    assert "specific" in folders.look("gs://bucket/m").error


def test_a_version_counts_once_nothing_in_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("monitor.found.time.monotonic", lambda: now[0])
    folder, folders = version(tmp_path, "1", 5), Folders()

    def sizes(after: float) -> dict[int, int]:
        now[0] += after
        return {number: one.size for number, one in folders.look(str(tmp_path)).versions.items()}

    assert sizes(0.0) == {}
    (folder / "variables" / "more").write_bytes(b"x")
    assert sizes(1.5) == {}, "it was still being copied"
    assert sizes(1.5) == {}
    assert sizes(1.0) == {1: 6}
    # What was told stays so while it changes, for it may be loaded.
    (folder / "variables" / "more").write_bytes(b"xyz")
    assert sizes(6.0) == {1: 6}
    assert sizes(2.5) == {1: 8}
    # Files that are as old as they look are not waited for.
    monkeypatch.setattr("monitor.found.time.time", lambda: 4e9)
    version(tmp_path, "2", 3)
    assert sizes(0.0) == {1: 8, 2: 3}


async def test_a_disk_that_does_not_answer_keeps_only_its_own_models_without_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, good = tmp_path / "a", tmp_path / "b"
    version(dead, "1")
    version(good, "1")
    answer, look = threading.Event(), Folders.look

    def slow(folders: Folders, path: str) -> object:
        if path == str(dead) and hangs:
            answer.wait(30)
        return look(folders, path)

    hangs = False
    monkeypatch.setattr(Folders, "look", slow)
    monkeypatch.setattr("monitor.found_watch.PATIENCE", 0.1)
    monkeypatch.setattr("monitor.found_watch.INTERVAL", 0.02)
    watch = FoundWatch(lambda: None)
    watch._folders = Folders(settled=0.0)
    watch.want({"dead": str(dead), "good": str(good)})
    running = asyncio.create_task(watch.run())

    def there() -> dict[str, tuple[set[int], str]]:
        return {name: (set(one.versions), one.error) for name, one in (watch.found or empty).models.items()}

    empty = Found()
    try:
        await eventually(lambda: there() == {"dead": ({1}, ""), "good": ({1}, "")}, "both")
        hangs = True
        version(good, "2")
        await eventually(lambda: there()["good"] == ({1, 2}, ""), "news of the good one")
        await eventually(lambda: there()["dead"] == ({1}, "its disk does not answer"), "the dead one's name")
        shutil.rmtree(good / "1")
        await eventually(lambda: there()["good"] == ({2}, ""), "more news of the good one")
        hangs = False
        answer.set()
        await eventually(lambda: there()["dead"] == ({1}, ""), "the dead one's return")
        stamp = watch.stamps[str(good), 2]
        os.truncate(good / "2" / "saved_model.pb", 3)
        watch._folders = Folders(settled=0.0)
        await eventually(lambda: watch.stamps[str(good), 2] != stamp, "another stamp")
    finally:
        answer.set()
        running.cancel()
        await asyncio.wait({running})
