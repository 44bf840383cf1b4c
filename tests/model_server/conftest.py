"""One folder of models per module, and one server over it for everything that doesn't change it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import saved_models
from tests.support.model_server import ModelServer


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """Models of every kind on one server, hpt with the versions 1 (b = 2) and 2 (b = 3) and the label `canary` on 1."""
    base = tmp_path_factory.mktemp("models")
    saved_models.half_plus_two(base / "hpt", 1)
    saved_models.half_plus_two(base / "hpt", 2, b=3)
    saved_models.half_plus_two(base / "hpt", 9)
    saved_models.echo(base / "echo", dtype="DT_UINT8")
    saved_models.echo(base / "floats", dtype="DT_FLOAT")
    saved_models.echo(base / "strings", dtype="DT_STRING")
    saved_models.slow(base / "slow", seconds=1)
    saved_models.without_variables(base / "novars")
    saved_models.defaulted(base / "defaulted")
    saved_models.examples(base / "examples")
    models = {path.name: path for path in sorted(base.iterdir())}
    config = base / "models.config"
    lines = [
        f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" '
        + ("model_version_policy { specific { versions: 1 versions: 2 } } " if name == "hpt" else "")
        + ('version_labels { key: "canary" value: 1 } ' if name == "hpt" else "")
        + "}"
        for name, path in models.items()
    ]
    config.write_text("model_config_list {\n" + "\n".join(lines) + "\n}")
    flags = ["--enable_grpc_healthcheck_service=true", "--allow_version_labels_for_unavailable_models=true"]
    with ModelServer(base / "log", f"--model_config_file={config}", *flags) as server:
        yield server
