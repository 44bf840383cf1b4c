"""compose.yaml, .env and small.env without an engine: nothing in them that Compose 1.29, 2 or 5 would not take, and
docs/docker.md names the variables that there are. docs/docker.md also says what was run with which Compose."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
DOCS = (ROOT / "docs" / "docker.md").read_text()

TRIED = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "entrypoint",
    "environment",
    "healthcheck",
    "image",
    "init",
    "logging",
    "mem_limit",
    "network_mode",
    "networks",
    "ports",
    "profiles",
    "read_only",
    "restart",
    "scale",
    "security_opt",
    "stop_grace_period",
    "tmpfs",
    "user",
    "volumes",
}
"""Keys of a service that each of the three was seen to take. Try another one with each before it is added here."""

UNCHECKED = {
    "envoy-bootstrap": "it ends",
    "bench": "it ends",
}
"""Services without a health check, and why."""


def variables(path: str) -> dict[str, str]:
    """Of a file of variables."""
    lines = [line for line in (ROOT / path).read_text().splitlines() if line and not line.startswith("#")]
    # Nothing that one of them, or the shell that docs/docker.md gives it to, would read in another way.
    assert all(re.fullmatch(r"[A-Z_]+=[\w./:=-]*", line) for line in lines), path
    return dict(line.split("=", 1) for line in lines)


LARGE, SMALL = variables(".env"), variables("control_plane/small.env")
USED = re.findall(r"\$\{(\w+)([^}]*)\}", re.sub(r"(?m)^ *#.*", "", TEXT))
"""Each variable with what stands behind its name."""
NAMES = {name for name, _ in USED}
OF_COMPOSE = {"COMPOSE_PROFILES"}
"""Read by Compose itself."""


def listed() -> dict[str, str]:
    """Variables in docs/docker.md's table of them, each with its row's second cell."""
    table = DOCS.partition("| variable | default |")[2].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return {name: cell for first, cell in rows for name in re.findall(r"`([A-Z_]+)`", first)}


def test_the_file_has_no_parts_that_one_of_them_does_not_know() -> None:
    assert {key for key in FILE if not key.startswith("x-")} == {"services", "networks", "volumes"}
    assert {key for network in FILE["networks"].values() for key in network} <= {"internal"}
    assert all(volume is None for volume in FILE["volumes"].values())


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_only_what_all_of_them_take(name: str) -> None:
    service = SERVICES[name]
    assert service.keys() <= TRIED
    assert set(service.get("build", {})) <= {"context", "target", "args"}
    assert set(service.get("healthcheck", {})) <= {"test", "interval", "timeout", "start_period", "disable"}
    assert isinstance(service.get("environment", {}), dict)
    # Longer forms of these, and `required` or `restart` of a dependency, came with Compose 2.
    assert all(isinstance(one, str) for key in ("ports", "volumes", "networks") for one in service.get(key, []))
    dependencies = service.get("depends_on", {})
    if isinstance(dependencies, dict):
        conditions = ("service_started", "service_healthy", "service_completed_successfully")
        assert all(list(one) == ["condition"] and one["condition"] in conditions for one in dependencies.values())
    assert set(dependencies) <= SERVICES.keys()


def test_each_variable_is_written_as_all_of_them_read_it() -> None:
    """1.29 knows none within another, and no `:+`."""
    assert all(re.match(r":-[^$]*$|:\?see \.env$", rest) for _, rest in USED)
    # All other dollars are doubled, and stay for the program that is run.
    rest = re.sub(r"\$\{\w+[^}]*\}|\$\$", "", re.sub(r"(?m)^ *#.*", "", TEXT))
    assert "$" not in rest


def test_each_variable_has_a_default_in_one_place() -> None:
    without = {name for name, rest in USED if rest.startswith(":?")}
    assert without == LARGE.keys() - OF_COMPOSE
    assert SMALL.keys() <= NAMES | OF_COMPOSE
    assert not {name for name, rest in USED if rest.startswith(":-")} & without
    # One default each: the same wherever it is used.
    assert len(set(USED)) == len(NAMES)


def test_the_docs_name_each_variable() -> None:
    table = listed()
    assert table.keys() == NAMES | OF_COMPOSE
    for name, value in LARGE.items():
        assert f"`{value}`" in table[name], name


@pytest.mark.parametrize("name", [name for name in LARGE if name.endswith("_IMAGE")])
def test_an_image_has_a_version(name: str) -> None:
    assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", LARGE[name]), LARGE[name]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_bounded_and_watched(name: str) -> None:
    service = SERVICES[name]
    assert service["image"].startswith("${"), "versions are in .env"
    assert service["mem_limit"]
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert service["security_opt"] == ["no-new-privileges:true"]
    check = service.get("healthcheck", {"disable": True})
    assert ("test" in check) is not (name in UNCHECKED)
    assert service["restart"] == ("no" if UNCHECKED.get(name) == "it ends" else "unless-stopped")


def after(name: str) -> set[str]:
    """All services that are stopped later."""
    direct = set(SERVICES[name].get("depends_on", ()))
    return direct.union(*map(after, direct))


@pytest.mark.parametrize(
    "name", [name for name, service in SERVICES.items() if service.get("command", [])[:1] == ["monitor"]]
)
def test_what_a_drain_needs_is_stopped_after_the_monitor(name: str) -> None:
    assert {"envoy", "control-plane-0", "control-plane-1", "etcd-0", "etcd-1", "etcd-2"} <= after(name)


def test_only_the_one_address_is_open_to_others() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    local = {name for name, given in ports.items() if all(":-127.0.0.1:" in port for port in given)}
    assert (set(ports) - local, local) == ({"envoy"}, {"prometheus", "grafana"})


def test_the_dockerfile_needs_no_buildkit() -> None:
    """1.29 builds without it."""
    text = (ROOT / "Dockerfile").read_text()
    assert not re.findall(r"(?im)^#\s*syntax=|^(RUN|COPY|ADD) --(?!from=).*|^.*<<-?['\"]?EOF", text)


@pytest.mark.parametrize(
    ("path", "extras"),
    [("modelplane/requirements.txt", ["docker"]), ("model_server/requirements.txt", ["docker", "model-server"])],
)
def test_the_images_have_versions_that_pyproject_allows(path: str, extras: list[str]) -> None:
    """What those need in turn, pip checks at the build: it takes nothing without a hash."""
    line = r"(?m)^([\w.-]+)==([\w.]+) (?:; python_full_version < '3.12' )?\\$"
    pinned = dict(re.findall(line, (ROOT / path).read_text()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


def test_what_builds_an_image_of_several_services_comes_first() -> None:
    """1.29 asks for the images in the file's order, unless a service depends on a later one."""
    images = [service["image"] for service in SERVICES.values()]
    for name, service in SERVICES.items():
        if "build" in service:
            assert images.index(service["image"]) == list(SERVICES).index(name), name
