"""What a monitor finds out from its configuration, the server's command, its config file and the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from monitor.config import MonitorConfig
from monitor.errors import MonitorError
from monitor.model_config import ModelConfigFile, parse_model_config
from monitor.plan import Plan, make_plan
from monitor.servables import Policy, WatchedModel

SERVER = "tensorflow_model_server"


def plan(*command: str, env: dict[str, str] | None = None, **config: Any) -> Plan:
    return make_plan(MonitorConfig(**config), command, env or {})


@pytest.mark.parametrize(
    "flags",
    [
        ["--port=9000", "--rest_api_port=9001", "--model_name=m", "--model_base_path=/models/m"],
        ["--port", "9000", "--rest_api_port", "9001", "--model_name", "m", "--model_base_path", "/models/m"],
        ["--port=1", "--port=9000", "--rest_api_port=9001", "--model_name=m", "--model_base_path=/models/m", "--x=y"],
    ],
    ids=["equals", "space", "last wins"],
)
def test_the_servers_own_flags(flags: list[str]) -> None:
    found = plan(SERVER, *flags)
    model = WatchedModel("m", "/models/m", several_versions=False, policy=Policy())
    assert found == Plan("127.0.0.1", 9000, 9001, (model,), None, found.flags)


def test_the_servers_defaults() -> None:
    found = plan(SERVER, "--model_base_path=/m")
    assert (found.port, found.rest_port, found.models[0].name) == (8500, 0, "default")


def test_a_server_behind_another_command() -> None:
    found = plan("modelplane", "model-server", "--port=7000", "--model_config_file=/models.config")
    assert (found.port, found.config_file) == (7000, Path("/models.config"))


def test_the_images_entrypoint_script() -> None:
    found = plan("/usr/bin/tf_serving_entrypoint.sh", env={"MODEL_NAME": "resnet"})
    assert (found.port, found.rest_port) == (8500, 8501)
    assert found.models == (WatchedModel("resnet", "/models/resnet", several_versions=False, policy=Policy()),)
    assert plan("/usr/bin/tf_serving_entrypoint.sh", "--port=9000").port == 9000


def test_a_config_file_makes_the_server_ignore_name_and_path() -> None:
    found = plan(SERVER, "--model_config_file=/c", "--model_name=m", "--model_base_path=/m", env={"MODEL_NAME": "n"})
    assert (found.models, found.config_file) == ((), Path("/c"))


def test_attached_by_address() -> None:
    found = plan(target="tfs:8500", model=("a", "b=/models/b"), rest_port=8501)
    assert found == Plan("tfs", 8500, 8501, (WatchedModel("a"), WatchedModel("b", "/models/b")), None)
    found = plan(target="tfs:8500", env={"MODEL_NAME": "m", "MODEL_BASE_PATH": "/models"})
    assert found.models == (WatchedModel("m", "/models/m"),)
    assert plan(target="tfs:8500", model=("a",), env={"MODEL_NAME": "m"}).models == (WatchedModel("a"),)


@pytest.mark.parametrize(
    ("command", "config", "message"),
    [
        ([], {}, "nothing to watch: give --target"),
        ([], {"target": "tfs:8500"}, "no model to watch: name each with --model"),
        ([SERVER], {}, "no model to watch"),
        ([SERVER, "--port=http"], {}, "the server's --port 'http' is not a TCP port"),
        ([SERVER, "--rest_api_port", "70000"], {}, "--rest_api_port '70000' is not a TCP port"),
        ([SERVER, "--port"], {}, "--port '' is not a TCP port"),
    ],
)
def test_mistakes(command: list[str], config: dict[str, Any], message: str) -> None:
    with pytest.raises(MonitorError, match=message):
        plan(*command, **config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target", "tfs", "write HOST:PORT"),
        ("metrics_listen", "18081", "write HOST:PORT"),
        ("target", "tfs:x", "'x' is not a TCP port"),
        ("target", "::1:8500", "needs brackets"),
        ("model", ("=/models/x",), "the name is empty"),
        ("rest_port", 70000, "rest_port 70000"),
        ("capacity", 0, "capacity 0"),
        ("poll_interval", 0.0, "poll_interval 0.0: must be at least"),
        ("drain_deadline", float("inf"), "drain_deadline"),
    ],
)
def test_a_value_that_cannot_be_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MonitorConfig(**{field: value})


POLICIES = {
    "": (False, Policy()),
    "model_version_policy { latest {} }": (False, Policy(1)),
    "model_version_policy { latest { num_versions: 0 } }": (False, Policy(1)),
    "model_version_policy { latest { num_versions: 2 } }": (True, Policy(2)),
    "model_version_policy { all {} }": (True, Policy(0)),
    "model_version_policy { specific { versions: 3 } }": (False, Policy(specific=frozenset({3}))),
    "model_version_policy { specific { versions: 3 versions: 3 } }": (False, Policy(specific=frozenset({3}))),
    "model_version_policy { specific { versions: 3 versions: 4 } }": (True, Policy(specific=frozenset({3, 4}))),
}


@pytest.mark.parametrize(("policy", "meant"), POLICIES.items())
def test_the_version_policy(policy: str, meant: tuple[bool, Policy]) -> None:
    text = f"model_config_list {{ config {{ name: 'm' base_path: '/m' model_platform: 'tensorflow' {policy} }} }}"
    assert parse_model_config(text) == (WatchedModel("m", "/m", *meant),)


def test_the_labels_in_the_config_file() -> None:
    labels = "version_labels { key: 'stable' value: 1 } version_labels { key: 'canary' value: 2 }"
    (model,) = parse_model_config(f"model_config_list {{ config {{ name: 'm' {labels} }} }}")
    assert model.labels == (("canary", 2), ("stable", 1))


def test_flags_that_say_how_the_server_loads() -> None:
    flags = ["--max_num_load_retries=0", "--load_retry_interval_micros", "500000", "--num_load_threads=4"]
    more = [
        "--allow_version_labels_for_unavailable_models",
        "--file_system_poll_wait_seconds=-1",
        "--model_base_path=/",
    ]
    found = plan(SERVER, *flags, *more).flags
    assert found is not None
    assert (found.load_retries, found.load_retry_micros, found.load_threads) == (0, 500_000, 4)
    assert (found.labels_for_unavailable, found.poll_wait, found.config_poll_wait) == (True, -1, 0)
    found = plan(SERVER, "--model_base_path=/", "--max_num_load_retries=many").flags
    assert found is not None
    assert (found.load_retries, found.labels_for_unavailable) == (5, False)
    assert plan(target="tfs:8500", model=("m",)).flags is None


def test_a_config_file_with_fields_that_only_the_server_knows() -> None:
    text = "model_config_list { config { name: 'm' logging_config { sampling_config { sampling_rate: 1 } } new: 3 } }"
    assert [model.name for model in parse_model_config(text)] == ["m"]
    assert parse_model_config("model_config_list {}") == ()


def test_a_config_file_that_breaks_keeps_the_last_good_list(tmp_path: Path) -> None:
    path = tmp_path / "models.config"
    path.write_text("model_config_list { config { name: 'a' } }")
    file = ModelConfigFile(path)
    file.load()
    assert not file.refresh(), "nothing changed"
    for broken in ("model_config_list { config { name: ", ""):
        path.write_text(broken)
        assert file.refresh()
        assert str(path) in file.trouble
        assert [model.name for model in file.models] == ["a"]
    path.unlink()
    assert file.refresh()
    assert "No such file" in file.trouble
    assert not file.refresh(), "said once"
    path.write_text("model_config_list { config { name: 'b' } }")
    assert file.refresh()
    assert (file.trouble, [model.name for model in file.models]) == ("", ["b"])


def test_a_file_that_is_replaced_by_one_of_equal_size_is_seen(tmp_path: Path) -> None:
    path, other = tmp_path / "models.config", tmp_path / "other"
    path.write_text("model_config_list { config { name: 'a' } }")
    file = ModelConfigFile(path)
    file.load()
    other.write_text("model_config_list { config { name: 'b' } }")
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    assert file.refresh()
    assert file.models[0].name == "b"


@pytest.mark.parametrize("content", [None, "", "nonsense", "custom_model_config {}"])
def test_a_config_file_that_is_wrong_from_the_start_is_the_users_mistake(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "models.config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MonitorError, match=str(path)):
        ModelConfigFile(path).load()
