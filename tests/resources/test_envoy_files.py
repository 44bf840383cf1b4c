from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from control_plane.envoy_files import read_envoy_file, render_bootstrap
from tests.support.processes import binary


def validate(path: Path) -> str:
    done = subprocess.run(
        [binary("envoy"), "--mode", "validate", "-c", path], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_envoy_accepts_the_bootstrap_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.yaml"
    path.write_text(read_envoy_file("bootstrap.yaml"))
    assert "deprecated" not in validate(path)


def test_envoy_accepts_a_rendered_bootstrap(tmp_path: Path) -> None:
    text = render_bootstrap(
        ["plane-1.example:18000", "[::1]:18001"], admin="127.0.0.1:9902", node_id="it's: {odd} # id"
    )
    path = tmp_path / "bootstrap.yaml"
    path.write_text(text)
    validate(path)
    for expected in ("'plane-1.example', port_value: 18000", "'::1', port_value: 18001", "port_value: 9902", "it''s"):
        assert expected in text
    assert text.count("# xDS address") == 2
    assert "9901" not in text


def test_envoy_accepts_a_bootstrap_with_clusters_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.yaml"
    path.write_text(render_bootstrap(on_demand_clusters=True))
    validate(path)
    assert "lds_config" in path.read_text()
    assert "cds_config" not in path.read_text()


@pytest.mark.parametrize("of_models", [False, True])
def test_envoy_accepts_a_bootstrap_that_shows_metrics(of_models: bool, tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.yaml"
    text = render_bootstrap(admin="0.0.0.0:9905", stats="[::]:9903", stats_of_models=of_models)
    path.write_text(text)
    validate(path)
    assert "'::', port_value: 9903" in text
    assert "'127.0.0.1', port_value: 9905" in text
    assert ("usedonly" in text) is of_models


def test_no_control_plane_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one HOST:PORT"):
        render_bootstrap([])


@pytest.mark.parametrize(("xds", "admin"), [("h}:1", "127.0.0.1:1"), ("h:1", "127.0.0.1")])
def test_an_address_that_is_none_is_refused(xds: str, admin: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        render_bootstrap([xds], admin=admin)
