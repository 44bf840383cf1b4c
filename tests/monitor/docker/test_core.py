"""Which containers are watched, where and as what; and why the others are not."""

from __future__ import annotations

from typing import Any

import pytest

from monitor.docker.container import read_container
from monitor.docker.core import Decision, DockerCore, Target
from monitor.docker.host import own_container
from monitor.docker.refusal import Reason
from monitor.server_flags import ServerFlags
from tests.monitor.docker.inspections import inspection

BRIDGES = frozenset({"bridge", "front", "back"})


def core_of(*inspections: dict[str, Any], own: str = "", **settings: Any) -> DockerCore:
    core = DockerCore("h", own, **settings)
    core.listed([read_container(one) for one in inspections], BRIDGES)
    return core


def decide(*inspections: dict[str, Any], own: str = "", **settings: Any) -> Decision:
    return core_of(*inspections, own=own, **settings).decide()


def only(*inspections: dict[str, Any], **settings: Any) -> Target:
    decision = decide(*inspections, **settings)
    (target,) = decision.targets.values()
    return target


def reason(*inspections: dict[str, Any], of: str = "a", **settings: Any) -> tuple[Reason, str]:
    refusal = decide(*inspections, **settings).refusals[of]
    return refusal.reason, refusal.text


@pytest.mark.parametrize(
    "image",
    [
        "tensorflow/serving",
        "tensorflow/serving:2.19.0-gpu",
        "docker.io/tensorflow/serving:latest",
        "registry.example:5000/mirror/tensorflow/serving@sha256:0123",
    ],
)
def test_the_official_image_needs_no_label(image: str) -> None:
    target = only(inspection("a", image=image))
    assert (target.instance, target.place.host, target.place.port, target.place.rest_port) == (
        "a@h",
        "172.17.0.2",
        8500,
        8501,
    )
    assert [model.name for model in target.models] == ["model"]


@pytest.mark.parametrize(
    "image", ["tensorflow/serving-devel", "mytensorflow/serving", "python:3", "tensorflow/serving/x"]
)
def test_another_image_is_none_of_ours(image: str) -> None:
    assert reason(inspection("a", image=image))[0] is Reason.NOT_ENABLED


def test_labels_say_it_all() -> None:
    labels = {
        "modelplane.enable": "true",
        "modelplane.grpc-port": "9000",
        "modelplane.rest-port": "9001",
        "modelplane.models": "digits=/models/digits, letters",
        "modelplane.zone": "z1",
        "modelplane.capacity": "4",
        "modelplane.instance": "blue",
        "modelplane.grpcport": "1",
    }
    target = only(inspection("a", image="mine", labels=labels, entrypoint=None, env=None))
    assert (target.instance, target.place.port, target.place.rest_port) == ("blue", 9000, 9001)
    assert [(model.name, model.base_path) for model in target.models] == [("digits", "/models/digits"), ("letters", "")]
    assert (target.zone, target.capacity) == ("z1", 4)
    assert target.remarks == "labels that are not known: modelplane.grpcport"


@pytest.mark.parametrize(
    ("command", "models", "port", "config_file"),
    [
        (["tensorflow_model_server", "--port=1", "--model_name=n", "--model_base_path=/m/n"], ["n"], 1, ""),
        (["/usr/bin/tensorflow_model_server", "--model_config_file=/m.config"], [], 8500, "/m.config"),
        (["sh", "-c", "exec tensorflow_model_server --port=2 --model_name=n --model_base_path=/m"], ["n"], 2, ""),
        (["nice", "tensorflow_model_server", "--model_base_path", "/m", "--model_name", "n"], ["n"], 8500, ""),
        (["tf_serving_entrypoint.sh", "--model_config_file=/m.config", "--port=3"], [], 3, "/m.config"),
    ],
)
def test_the_command_names_ports_and_models(command: list[str], models: list[str], port: int, config_file: str) -> None:
    target = only(inspection("a", entrypoint=None, command=command))
    assert ([model.name for model in target.models], target.place.port) == (models, port)
    assert target.config_file == config_file
    assert not any(model.base_path for model in target.models), "a folder of the container is none of the monitor's"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"modelplane.grpc-port": "0"}, "modelplane.grpc-port='0' is not a whole number between 1 and 65535"),
        ({"modelplane.rest-port": "x"}, "modelplane.rest-port='x'"),
        ({"modelplane.capacity": "-1"}, "between 1 and 1000000"),
        ({"modelplane.enable": "maybe"}, "neither true nor false"),
        ({"modelplane.models": "=x"}, "a name is empty"),
        ({"modelplane.manage": "perhaps"}, "neither true nor false"),
        ({"modelplane.memory": "much"}, "write for example 8GiB"),
    ],
)
def test_a_label_that_can_not_be_read_is_named(labels: dict[str, str], words: str) -> None:
    found, text = reason(inspection("a", labels=labels))
    assert found is Reason.BAD_LABEL
    assert words in text


def test_what_a_managed_container_says_of_itself() -> None:
    labels = {"modelplane.manage": "true", "modelplane.label.gpu": "a100", "modelplane.memory": "2GiB"}
    command = ["tensorflow_model_server", "--model_config_file=/m.config"]
    target = only(inspection("a", labels=labels, entrypoint=command))
    assert target.managed == ServerFlags(model_config_file="/m.config")
    assert (target.labels, target.memory, target.remarks) == (("gpu=a100",), 2**31, "")
    assert only(inspection("a", entrypoint=command)).managed is None
    found, text = reason(
        inspection("a", labels=labels, entrypoint=[*command, "--model_config_file_poll_wait_seconds=5"])
    )
    assert found is Reason.BAD_LABEL
    assert "re-reads its model config file" in text


def test_reasons_by_name() -> None:
    off = inspection("a", labels={"modelplane.enable": "false"})
    assert reason(off) == (Reason.DISABLED, "its label modelplane.enable is false")
    half = inspection("a", image="x", labels={"modelplane.models": "m"})
    assert reason(half) == (Reason.DISABLED, "it has modelplane.models, but not modelplane.enable=true")
    dead = inspection("a", status="exited")
    assert reason(dead) == (Reason.NOT_RUNNING, "it is exited with code 137")
    assert reason(inspection("a", status="restarting"))[0] is Reason.NOT_RUNNING
    silent = inspection("a", entrypoint=["serve"], env=None)
    assert reason(silent) == (
        Reason.NO_MODELS,
        "neither its command nor its environment names a model; add the label modelplane.models=NAME",
    )
    parent = inspection("a", entrypoint=["modelplane"], command=["monitor", "--", "tensorflow_model_server"])
    assert reason(parent)[0] is Reason.IS_MONITOR


def test_a_server_with_a_monitor_beside_it_is_left_to_that_one() -> None:
    pause = inspection("pod", image="pause", entrypoint=["/pause"])
    shared = {"networks": {}, "network_mode": "container:id-pod"}
    server = inspection("a", **shared)
    beside = inspection("m", image="modelplane", entrypoint=["modelplane"], command=["monitor", "--model=x"], **shared)
    assert reason(pause, server, beside) == (
        Reason.HAS_MONITOR,
        "container m, in the same network, runs a monitor for it",
    )
    # Without it, the pod's address is the server's.
    assert only(pause, server).place.host == "172.17.0.2"
    gone = decide(inspection("pod", image="pause", entrypoint=["/pause"], status="exited"), server)
    assert gone.refusals["a"].reason is Reason.NO_ADDRESS


def test_two_containers_of_one_name_the_first_has_it() -> None:
    labels = {"modelplane.instance": "one"}
    late = inspection("late", labels=labels, run="2026-01-02T00:00:00Z")
    core = core_of(late, inspection("early", labels=labels))
    assert core.decide().targets["one"].name == "early"
    assert core.decide().refusals["late"].reason is Reason.NAME_TAKEN
    core.gone("id-early")
    assert core.decide().targets["one"].name == "late"
    core.seen(read_container(inspection("early", labels=labels)))
    assert core.decide().targets["one"].name == "late", "it has the name now"


NETWORKS = {"front": "10.0.0.2", "back": "10.1.0.2", "far": "10.2.0.2"}
OUTSIDE = ("192.0.2.1", 32768, "192.0.2.1")
PORTS = {"8500/tcp": [{"HostIp": "0.0.0.0", "HostPort": "32768"}], "8501/tcp": None}


@pytest.mark.parametrize(
    ("settings", "more", "place"),
    [
        ({}, {}, ("10.1.0.2", 8500, None)),
        ({"networks": ("far", "front")}, {}, ("10.2.0.2", 8500, None)),
        ({"networks": ("absent", "front")}, {}, ("10.0.0.2", 8500, None)),
        ({"advertise": "192.0.2.1"}, {"ports": PORTS}, ("192.0.2.1", 32768, "192.0.2.1")),
        ({"advertise": "192.0.2.1"}, {}, ("10.1.0.2", 8500, None)),
        ({"advertise": "192.0.2.1", "networks": ("front",)}, {"ports": PORTS}, ("10.0.0.2", 8500, None)),
        ({"advertise": "192.0.2.1", "networks": ("absent",)}, {"ports": PORTS}, ("192.0.2.1", 32768, "192.0.2.1")),
        ({}, {"network_mode": "host", "networks": {}}, ("127.0.0.1", 8500, None)),
        ({"advertise": "192.0.2.1"}, {"network_mode": "host", "networks": {}}, ("127.0.0.1", 8500, "192.0.2.1")),
    ],
)
def test_the_address_seen_from_the_host(settings: Any, more: Any, place: tuple[str, int, str | None]) -> None:
    found = only(inspection("a", **{"networks": NETWORKS, **more}), **settings).place
    assert (found.host, found.port, found.advertise) == place
    assert found.rest_port == (0 if place[1] == 32768 else 8501), "REST that is not published is not there"


@pytest.mark.parametrize(
    ("settings", "more", "place"),
    [
        ({}, {}, ("10.0.0.2", 8500, None)),
        ({"networks": ("far",)}, {}, ("10.2.0.2", 8500, None)),
        ({"advertise": "192.0.2.1"}, {"ports": PORTS}, ("10.0.0.2", 8500, None)),
        (
            {"advertise": "192.0.2.1"},
            {"ports": PORTS, "networks": {"far": "1.1.1.1"}},
            ("192.0.2.1", 32768, "192.0.2.1"),
        ),
    ],
)
def test_the_address_seen_from_a_container(settings: Any, more: Any, place: tuple[str, int, str | None]) -> None:
    me = inspection("me", image="modelplane", entrypoint=["modelplane", "monitor"], networks={"front": "10.0.0.9"})
    found = only(me, inspection("a", **{"networks": NETWORKS, **more}), own="id-me", **settings).place
    assert (found.host, found.port, found.advertise) == place


@pytest.mark.parametrize(
    ("own", "settings", "more", "words"),
    [
        ("", {}, {"networks": {"far": "1.1.1.1"}}, "it is in far, and none of these is a bridge of this host; join"),
        ("id-me", {}, {"networks": {"far": "1.1.1.1"}}, "it is in far, and this monitor is in front; join"),
        ("", {"networks": ("x",)}, {}, "it is in bridge, and --docker-network names x; join"),
        (
            "id-me",
            {"advertise": "192.0.2.1"},
            {"networks": {}, "ports": {"8500/tcp": [{"HostIp": "127.0.0.1", "HostPort": "1"}]}},
            "its port 8500 is not published where 192.0.2.1 reaches it",
        ),
        ("id-me", {}, {"network_mode": "host", "networks": {}}, "give --advertise-address"),
    ],
)
def test_no_address_says_what_would_mend_it(own: str, settings: Any, more: Any, words: str) -> None:
    me = inspection("me", image="modelplane", entrypoint=["modelplane", "monitor"], networks={"front": "10.0.0.9"})
    found, text = reason(me, inspection("a", **more), own=own, **settings)
    assert found is Reason.NO_ADDRESS
    assert words in text


def test_a_watched_run_keeps_its_address_and_name_as_long_as_it_can() -> None:
    core = core_of(inspection("a", networks={"front": "10.0.0.2"}))
    assert core.decide().targets["a@h"].place.host == "10.0.0.2"
    core.seen(read_container(inspection("a", networks={"front": "10.0.0.2", "back": "10.1.0.2"})))
    assert core.decide().targets["a@h"].place.host == "10.0.0.2", "another network is no reason to move"
    renamed = inspection("b", identity="id-a", networks={"back": "10.1.0.2"})
    core.seen(read_container(renamed))
    assert core.decide().targets["a@h"].place.host == "10.1.0.2", "it is not reached there any more"
    core.seen(read_container(inspection("b", identity="id-a", run="2026-01-02T00:00:00Z")))
    assert list(core.decide().targets) == ["b@h"], "its next run has its new name"


def test_what_changes_while_it_is_watched_is_no_other_target() -> None:
    core = core_of(inspection("a"))
    before = core.decide().targets["a@h"]
    log = [{"Output": "curl: (7)\n refused", "ExitCode": 1}]
    core.seen(read_container(inspection("a", status="paused", health={"Status": "unhealthy", "Log": log})))
    after = core.decide().targets["a@h"]
    assert (after.held, after.unhealthy) == (
        "its container is paused",
        "its container's health check fails: curl: (7) refused",
    )
    assert after.identity == before.identity
    core.seen(read_container(inspection("a", run="2026-01-02T00:00:00Z")))
    assert core.decide().targets["a@h"].identity != before.identity


@pytest.mark.parametrize(
    ("mounts", "hostname", "own"),
    [
        ("1 2 8:1 /var/lib/docker/containers/{a}/hostname /etc/hostname rw - ext4", "web", "a"),
        ("1 2 0:5 / /var/lib/docker/containers/{a}/mounts/shm rw - tmpfs", "web", ""),
        ("", "{b:.12}", "b"),
        ("", "vm", ""),
    ],
    ids=["by its files", "the host sees all containers' mounts", "by its name", "on the host"],
)
def test_the_monitors_own_container(mounts: str, hostname: str, own: str) -> None:
    ids = {"a": "a" * 64, "b": "0123456789ab" + "b" * 52}
    found = own_container(mounts.format(**ids), hostname.format(**ids), ids.values())
    assert found == ids.get(own, "")


def test_what_an_engine_leaves_out_is_empty() -> None:
    assert read_container({"Id": "x"}).status == ""
    odd = read_container({"Id": "x", "Config": {"Labels": None, "Env": None}, "State": None, "NetworkSettings": None})
    assert (odd.labels, odd.environment, odd.networks) == ({}, {}, {})
