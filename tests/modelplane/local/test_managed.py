"""What `modelplane up --manage` starts and writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from modelplane.local.config import UpConfig
from modelplane.local.models import Source
from modelplane.local.policies import write_policies
from modelplane.local.programs import Shared, managed_instance
from modelplane.options import Sources, build
from monitor.config import MonitorConfig
from registry.policy.read import read_policy


def test_its_policies_can_be_applied(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "old.yaml").write_text("of the last run")
    write_policies([Source("digits", tmp_path / 'a "b" \\: é'), Source("b", tmp_path / "b")], folder)
    read = {one.name: read_policy(yaml.safe_load(one.read_text())) for one in folder.iterdir()}
    assert {name: (one.name, one.base_path) for name, one in read.items()} == {
        "digits.yaml": ("digits", str(tmp_path / 'a "b" \\: é')),
        "b.yaml": ("b", str(tmp_path / "b")),
    }


def test_an_instance_gets_its_labels_and_its_share_of_the_memory() -> None:
    config = UpConfig(manage=True, instances=2, instance_label=("tfs-1:gpu=a100", "tfs-1:disk=ssd", "tfs-0:gpu=none"))
    assert config.labels("tfs-1") == ["gpu=a100", "disk=ssd"]
    command = managed_instance("tfs-1", Shared("e:1", "/p/"), ["server"], (1, 2), config.labels("tfs-1"), 2**30)
    own, server = command[: command.index("--")], command[command.index("--") + 1 :]
    assert server == ["server", "--port=1", "--rest_api_port=2"]
    flags = dict(one.removeprefix("--").split("=", 1) for one in own if one.startswith("--memory"))
    monitor = build(MonitorConfig, Sources({"manage": True, "label": ["gpu=a100", "disk=ssd"], **flags}))
    assert (monitor.labels, monitor.memory_bytes(owned=True)) == ({"gpu": "a100", "disk": "ssd"}, 2**30)


@pytest.mark.parametrize(
    ("label", "manage", "told"),
    [
        ("gpu=a100", True, "write INSTANCE:NAME=VALUE"),
        ("tfs-0:gpu", True, "write INSTANCE:NAME=VALUE"),
        ("tfs-2:gpu=a100", True, "the instances are tfs-0, tfs-1"),
        ("tfs-0:gpu=a100", False, "add --manage"),
    ],
)
def test_labels_that_select_nothing_are_refused(label: str, manage: bool, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        UpConfig(manage=manage, instance_label=(label,))
