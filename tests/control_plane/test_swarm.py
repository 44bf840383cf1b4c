"""control_plane/swarm.yaml against compose.yaml, from which it is derived: what both must say alike, and that it holds
nothing that `docker stack deploy` refuses or silently leaves out. Without an engine."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]

SERVICES = {
    "etcd-0": "etcd-0",
    "etcd-1": "etcd-1",
    "etcd-2": "etcd-2",
    "control-plane": "control-plane-0",
    "envoy": "envoy",
    "serving": "serving",
}
"""Each service there, and the one here that it is."""

TAKEN = {
    "cap_drop",
    "command",
    "configs",
    "deploy",
    "entrypoint",
    "environment",
    "healthcheck",
    "hostname",
    "image",
    "init",
    "logging",
    "networks",
    "ports",
    "read_only",
    "stop_grace_period",
    "user",
    "volumes",
}
"""Keys of a service that a stack takes. Format 3.8 refuses `scale`, `profiles` and `mem_limit`; `docker stack deploy`
leaves out `build`, `depends_on`, `restart`, `security_opt` and `network_mode`."""

DEPLOY = {
    "endpoint_mode",
    "mode",
    "placement",
    "replicas",
    "resources",
    "restart_policy",
    "rollback_config",
    "update_config",
}

UPDATE = {"parallelism", "delay", "failure_action", "monitor", "max_failure_ratio", "order"}


def read(path: str) -> dict[str, Any]:
    """With YAML's own merges done, and an unset variable's default in its place."""
    text = re.sub(r"(?<!\$)\$\{\w+:-([^}]*)\}", r"\1", (ROOT / path).read_text())
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


SWARM, COMPOSE = read("control_plane/swarm.yaml"), read("compose.yaml")


def test_every_service_of_the_large_stack_is_there() -> None:
    assert set(SWARM["services"]) == set(SERVICES)
    # The bootstrap is a config here, and two control planes are one service.
    elsewhere = {"envoy-bootstrap", "control-plane-1"}
    large = {name for name, service in COMPOSE["services"].items() if "profiles" not in service}
    assert large - elsewhere == set(SERVICES.values())


@pytest.mark.parametrize(("name", "origin"), SERVICES.items())
def test_a_service_is_what_compose_runs(name: str, origin: str) -> None:
    service, expected = SWARM["services"][name], COMPOSE["services"][origin]
    same = {"image", "command", "entrypoint", "read_only", "cap_drop", "logging", "stop_grace_period", "user"}
    for key in same - ({"command"} if name == "envoy" else set()):
        assert service.get(key) == expected.get(key), key
    assert service["deploy"]["resources"]["limits"] == {"memory": expected["mem_limit"]}
    ours, theirs = (dict(one.get("environment", {})) for one in (service, expected))
    replica, number = ours.pop("MODELPLANE_REPLICA", None), theirs.pop("MODELPLANE_REPLICA", None)
    assert (replica is None) == (number is None)
    assert ours == theirs
    assert ("/tmp" in expected.get("tmpfs", [])) == ({"type": "tmpfs", "target": "/tmp"} in service.get("volumes", []))


@pytest.mark.parametrize("name", ["control-plane", "envoy", "serving"])
def test_a_health_check_is_that_of_compose(name: str) -> None:
    check, expected = (file["services"][key]["healthcheck"] for file, key in ((SWARM, name), (COMPOSE, SERVICES[name])))
    longer = {"start_period"} if name == "serving" else set()  # what is unhealthy is ended, not only listed so
    assert {key: check[key] for key in check.keys() - longer} == {key: expected[key] for key in check.keys() - longer}


@pytest.mark.parametrize("number", range(3))
def test_a_member_of_etcd_is_found_before_it_is_healthy(number: int) -> None:
    """It has no check, or no member would ever find another; and its data stay where it runs."""
    service = SWARM["services"][f"etcd-{number}"]
    assert service["healthcheck"] == {"disable": True}
    assert service["volumes"] == COMPOSE["services"][f"etcd-{number}"]["volumes"]
    assert service["deploy"]["placement"] == {"constraints": [f"node.labels.etcd-{number} == true"]}


@pytest.mark.parametrize("name", SERVICES)
def test_a_stack_takes_every_key(name: str) -> None:
    service = SWARM["services"][name]
    assert service.keys() <= TAKEN
    deploy = service["deploy"]
    assert deploy.keys() <= DEPLOY
    assert deploy["endpoint_mode"] == "dnsrr"
    for update in (deploy["update_config"], deploy["rollback_config"]):
        assert update.keys() <= UPDATE
        assert update["parallelism"] == 1
    # A service without a virtual address has no other ports.
    assert all(port["mode"] == "host" for port in service.get("ports", []))
    assert SWARM["version"] == "3.8"
    assert {key for key in SWARM if not key.startswith("x-")} == {
        "version",
        "services",
        "configs",
        "networks",
        "volumes",
    }


def test_what_holds_a_port_or_a_volume_ends_before_the_next_one_starts() -> None:
    orders = {name: service["deploy"]["update_config"]["order"] for name, service in SWARM["services"].items()}
    assert orders == {name: "start-first" if name == "serving" else "stop-first" for name in SERVICES}


def test_no_volume_is_shared_between_services() -> None:
    """Each host has its own volumes: what two services share is a config or a folder of every host."""
    named = [mount for service in SWARM["services"].values() for mount in service.get("volumes", [])]
    used = [mount.partition(":")[0] for mount in named if isinstance(mount, str) and not mount.startswith("${")]
    assert sorted(used) == sorted(SWARM["volumes"])


def test_variables_are_those_of_compose() -> None:
    """But for those that only a stack has."""
    variables = [
        set(re.findall(r"(?<!\$)\$\{(\w+)", (ROOT / path).read_text()))
        for path in ("control_plane/swarm.yaml", "compose.yaml")
    ]
    assert variables[0] - variables[1] == {"LOADING_TIME", "ENVOY_BOOTSTRAP", "ENVOY_BOOTSTRAP_VERSION"}


def test_envoy_is_started_as_in_compose_but_for_its_name() -> None:
    """One bootstrap for all, so what tells them apart is in the command."""
    assert SWARM["services"]["envoy"]["hostname"] == "{{.Node.Hostname}}"
    shell = SWARM["services"]["envoy"]["command"]
    assert shell[:2] == ["bash", "-c"]
    assert shlex.split(shell[2].replace("$$", "$")) == [
        "exec",
        *COMPOSE["services"]["envoy"]["command"],
        "--service-node",
        "$HOSTNAME",
    ]
    assert SWARM["services"]["envoy"]["configs"] == [
        {"source": "envoy-bootstrap", "target": COMPOSE["services"]["envoy"]["command"][2]}
    ]
