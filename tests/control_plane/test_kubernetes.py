"""control_plane/kubernetes: that an API server would take it, and that its parts name each other right. Without a
cluster: what Kubernetes does with it is not tested here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import ValidationError, validate

from modelplane.commandline import CommandLine
from modelplane.commands import control_plane, envoy_bootstrap, monitor

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "control_plane" / "kubernetes"
KUBERNETES = "1.29"
"""The oldest whose sidecars need no feature gate; later ones take the same."""

KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS = [
    each
    for file in sorted(FOLDER.glob("*.yaml"))
    if file.name != "kustomization.yaml"
    for each in yaml.safe_load_all(file.read_text())
]
WORKLOADS = {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] in ("Deployment", "StatefulSet")}
COMMANDS: dict[str, CommandLine] = {
    "control-plane": control_plane.command_line(),
    "bootstrap": envoy_bootstrap.command_line(),
    "monitor": monitor.command_line(),
}
"""By container, which command of ours it runs."""


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [each for each in OBJECTS if each["kind"] == kind]


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = WORKLOADS[name]["spec"]["template"]["spec"]
    return spec


def containers(name: str) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in [*pod(name).get("initContainers", []), *pod(name)["containers"]]}


ALL = [(workload, container) for workload in WORKLOADS for container in containers(workload)]


@pytest.mark.parametrize("each", OBJECTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_the_schema_takes_it(each: dict[str, Any]) -> None:
    validate(each, KUBERNETES, strict=True)


def test_the_schema_refuses_what_is_misspelt() -> None:
    with pytest.raises(ValidationError, match="replica"):
        validate(
            {**WORKLOADS["serving"], "spec": {**WORKLOADS["serving"]["spec"], "replica": 2}}, KUBERNETES, strict=True
        )


def test_every_file_is_a_resource() -> None:
    files = {file.name for file in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert sorted(KUSTOMIZATION["resources"]) == sorted(files)
    names = [(each["kind"], each["metadata"]["name"]) for each in OBJECTS]
    assert len(names) == len(set(names))


def test_the_versions_are_those_of_compose() -> None:
    pins = dict(re.findall(r"^\w+_IMAGE=(.+):(.+)$", (ROOT / ".env").read_text(), re.MULTILINE))
    tags = {image["name"]: image["newTag"] for image in KUSTOMIZATION["images"]}
    used = {containers(workload)[name]["image"] for workload, name in ALL}
    assert used == tags.keys(), "none with a tag of its own, and none without"
    assert {name: pins[name] for name in tags} == tags


@pytest.mark.parametrize("name", WORKLOADS)
def test_selectors_find_their_pods(name: str) -> None:
    labels = WORKLOADS[name]["spec"]["template"]["metadata"]["labels"]
    assert WORKLOADS[name]["spec"]["selector"] == {"matchLabels": labels}
    budgets = [each for each in of_kind("PodDisruptionBudget") if each["spec"]["selector"] == {"matchLabels": labels}]
    assert len(budgets) == 1
    assert budgets[0]["spec"]["maxUnavailable"] < WORKLOADS[name]["spec"]["replicas"]
    for term in pod(name)["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]:
        assert term["podAffinityTerm"]["labelSelector"] == {"matchLabels": labels}


@pytest.mark.parametrize("service", of_kind("Service"), ids=lambda service: str(service["metadata"]["name"]))
def test_services_lead_to_ports(service: dict[str, Any]) -> None:
    (name,) = (
        name
        for name, each in WORKLOADS.items()
        if each["spec"]["template"]["metadata"]["labels"] == service["spec"]["selector"]
    )
    ports = {
        port["name"]: port["containerPort"] for each in containers(name).values() for port in each.get("ports", [])
    }
    for port in service["spec"]["ports"]:
        assert ports[port["targetPort"]] == port["port"]
    if WORKLOADS[name]["kind"] == "StatefulSet":
        assert WORKLOADS[name]["spec"]["serviceName"] == service["metadata"]["name"]


def named_ports(name: str) -> set[str]:
    return {port["name"] for each in containers(name).values() for port in each.get("ports", [])}


def allowed(name: str, port: str) -> set[str] | None:
    """The workloads that may reach a port of one; None: whoever wants to."""
    (policy,) = (each for each in of_kind("NetworkPolicy") if each["metadata"]["name"] == name)
    assert policy["spec"]["podSelector"] == WORKLOADS[name]["spec"]["selector"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    rules = [rule for rule in policy["spec"]["ingress"] if {"port": port} in rule["ports"]]
    if any("from" not in rule for rule in rules):
        return None
    selectors = [peer["podSelector"] for rule in rules for peer in rule["from"]]
    found = {other for other in WORKLOADS if WORKLOADS[other]["spec"]["selector"] in selectors}
    assert len(found) == len({str(selector) for selector in selectors})
    return found


def test_only_who_needs_it_reaches_what_asks_nobody_who_they_are() -> None:
    assert {each["metadata"]["name"] for each in of_kind("NetworkPolicy")} == WORKLOADS.keys()
    reached = {(name, port): allowed(name, port) for name in WORKLOADS for port in named_ports(name)}
    assert reached == {
        ("etcd", "client"): {"control-plane", "serving", "etcd"},
        ("etcd", "peer"): {"etcd"},
        ("etcd", "metrics"): None,
        ("control-plane", "xds"): {"envoy", "control-plane"},
        ("control-plane", "http"): None,
        ("envoy", "grpc"): None,
        ("envoy", "rest"): None,
        ("envoy", "stats"): None,
        ("serving", "grpc"): {"envoy", "control-plane"},
        ("serving", "rest"): {"envoy", "control-plane"},
        ("serving", "metrics"): None,
    }


@pytest.mark.parametrize("name", WORKLOADS)
def test_metrics_are_read_where_they_are(name: str) -> None:
    template = WORKLOADS[name]["spec"]["template"]
    ports = {port["containerPort"] for each in containers(name).values() for port in each.get("ports", [])}
    assert template["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
    assert int(template["metadata"]["annotations"]["prometheus.io/port"]) in ports
    variables = [one.get("value", "") for each in containers(name).values() for one in each.get("env", [])]
    listens = template["metadata"]["annotations"]["prometheus.io/port"]
    assert listens == "18080" or any(value.endswith(f"0.0.0.0:{listens}") for value in variables)


@pytest.mark.parametrize(("workload", "name"), ALL)
def test_containers_use_what_is_there(workload: str, name: str) -> None:
    container = containers(workload)[name]
    claims = [each["metadata"]["name"] for each in WORKLOADS[workload]["spec"].get("volumeClaimTemplates", [])]
    volumes = {each["name"] for each in pod(workload).get("volumes", [])} | set(claims)
    assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind("ConfigMap")}
    assert {source["configMapRef"]["name"] for source in container.get("envFrom", [])} <= maps.keys()
    ports = {port["name"] for port in container.get("ports", [])}
    for kind in ("readinessProbe", "livenessProbe"):
        for how in ("httpGet", "tcpSocket"):
            if how in container.get(kind, {}):
                assert container[kind][how]["port"] in ports


@pytest.mark.parametrize(("workload", "name"), ALL)
def test_containers_are_confined_as_the_namespace_demands(workload: str, name: str) -> None:
    context, container = pod(workload)["securityContext"], containers(workload)[name]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] == 10001
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"memory"} <= container["resources"]["limits"].keys()
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    assert f"useradd --uid {context['runAsUser']} " in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize(("workload", "name"), [(workload, name) for workload, name in ALL if name in COMMANDS])
def test_our_commands_know_each_variable(workload: str, name: str) -> None:
    container, command = containers(workload)[name], COMMANDS[name]
    assert container["image"] == "modelplane"
    assert container.get("args", [name]) == [name]
    given = {one["name"]: one.get("value", "10.0.0.1") for one in container["env"] if one["name"] != "POD_IP"}
    for source in container.get("envFrom", []):
        (data,) = (
            each["data"] for each in of_kind("ConfigMap") if each["metadata"]["name"] == source["configMapRef"]["name"]
        )
        given |= data
    given = {variable: value.replace("$(POD_IP)", "10.0.0.1") for variable, value in given.items()}
    # A variable that no option has is not an error for the command, so that one is looked for here.
    assert given.keys() <= {option.env for option in command.options}
    command.parse([], given)


def test_the_registry_is_the_etcd_that_is_there() -> None:
    (data,) = (each["data"] for each in of_kind("ConfigMap") if each["metadata"]["name"] == "registry")
    members = [f"etcd-{number}.etcd" for number in range(WORKLOADS["etcd"]["spec"]["replicas"])]
    assert data == {"MODELPLANE_ETCD": ",".join(f"{member}:2379" for member in members)}
    environment = {one["name"]: one.get("value") for one in containers("etcd")["etcd"]["env"]}
    assert environment["ETCD_INITIAL_CLUSTER"] == ",".join(
        f"{member.partition('.')[0]}=http://{member}:2380" for member in members
    )


def test_envoy_and_servers_run_as_in_compose() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    server = containers("serving")["serving"]
    assert [*server["command"], *server["args"]] == [
        *compose["sidecar-serving"]["entrypoint"],
        *compose["sidecar-serving"]["command"],
    ]
    envoy = containers("envoy")["envoy"]
    assert envoy["command"][:3] == compose["envoy"]["command"]
    check = compose["envoy"]["healthcheck"]["test"]
    assert envoy["readinessProbe"]["exec"]["command"] == [part.replace("$$", "$") for part in check[1:]]


def test_a_server_stops_when_its_monitor_has_drained() -> None:
    """The monitor is a sidecar, and in one process namespace and of one user with its server, which may signal it."""
    monitored = containers("serving")["monitor"]
    assert monitored["restartPolicy"] == "Always"
    assert pod("serving")["shareProcessNamespace"]
    assert "runAsUser" not in monitored["securityContext"]
    script = containers("serving")["serving"]["lifecycle"]["preStop"]["exec"]["command"][2]
    assert '"$name" = modelplane ]' in script
    assert "kill -TERM" in script
