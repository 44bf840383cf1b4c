"""What the local stack runs, as command lines. Nothing here starts anything."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from modelplane.errors import UserError

_EXTRA = "pip install 'modelplane[local]'"
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "1", "PYTHONUNBUFFERED": "1"}
"""TensorFlow's greetings are noise in a log; its warnings and errors aren't."""
DRAIN_DEADLINE = 15.0
"""How long an instance may drain, in seconds."""


def modelplane(*arguments: str) -> list[str]:
    """A command of ours, by this interpreter, so that a virtual environment needn't be activated. -P: a folder named
    `registry` where the user happens to be must not be imported."""
    return [sys.executable, "-P", "-m", "modelplane", *arguments]


def python(script: Path, *arguments: str) -> list[str]:
    """A script, by this interpreter."""
    return [sys.executable, "-P", str(script), *arguments]


def find_binary(name: str) -> str | None:
    """An executable on PATH, or beside this interpreter, where wheels put theirs."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def require_binary(name: str, otherwise: str = "") -> str:
    """As find_binary. Raises UserError with the mend."""
    found = find_binary(name)
    if found is None:
        raise UserError(f"{name} is neither on PATH nor beside {sys.executable}; {_EXTRA} brings it{otherwise}")
    return found


def require_modules(what: str, names: Sequence[str], otherwise: str = "") -> None:
    """Check that packages are installed, without importing them. Raises UserError with the mend."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(f"{what} needs {', '.join(missing)}; {_EXTRA} brings it{otherwise}")


def model_server(choice: str) -> list[str]:
    """The model server's command, without flags, for --server auto, tensorflow or stand-in. Raises UserError."""
    real = find_binary("tensorflow_model_server")
    if choice != "stand-in" and real is not None:
        return [real]
    if choice == "tensorflow":
        raise UserError("tensorflow_model_server is not on PATH; put it there, or use --server stand-in")
    require_modules("the stand-in model server", ["tensorflow", "tensorflow_serving"])
    # The real one has no such flag: it listens on all addresses.
    return modelplane("model-server", "--bind_address=127.0.0.1")


def etcd(binary: str, data: Path, port: int, peer_port: int, *, durable: bool) -> list[str]:
    """One member, reachable from this machine only."""
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    return [
        binary,
        *("--name", "local", "--data-dir", str(data)),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"local={peer}"),
        *("--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"),
        *("--logger", "zap", "--log-level", "warn"),
        # Data that is thrown away at the next start needs no disk to be waited for.
        *(() if durable else ("--unsafe-no-fsync",)),
    ]


MONITORING = 'prometheus_config { enable: true, path: "/monitoring/prometheus/metrics" }\n'
"""A MonitoringConfig (monitoring_config.proto): where monitors look for a server's load."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all of our own children are told alike."""

    etcd: str
    prefix: str
    passed_on: tuple[str, ...] = ()
    monitoring: Path | None = None
    """A file that has the servers show how busy they are (MONITORING)."""

    def flags(self) -> list[str]:
        """As flags."""
        return ["--etcd", self.etcd, "--prefix", self.prefix, *self.passed_on]

    def server_flags(self) -> list[str]:
        """What every model server is told."""
        return [f"--monitoring_config_file={self.monitoring}"] if self.monitoring else []


def control_plane(shared: Shared, ports: Mapping[str, int], listen: str) -> list[str]:
    """One replica, which also tells Envoy where to listen."""
    return modelplane(
        "control-plane",
        *shared.flags(),
        *("--replica", "local"),
        *("--xds-listen", f"127.0.0.1:{ports['xds']}", "--http-listen", f"127.0.0.1:{ports['http']}"),
        *("--listen-address", listen, "--grpc-port", str(ports["grpc"]), "--rest-port", str(ports["rest"])),
        # Two Envoys must not share a port in silence when several stacks run.
        "--no-reuse-port",
        # This fleet starts from nothing.
        *("--empty-registry-grace", "0"),
    )


def envoy(binary: str, bootstrap: Path) -> list[str]:
    """Hot restart is off, because it needs a number that is unique on the machine."""
    return [binary, "-c", str(bootstrap), "--disable-hot-restart", "--log-level", "warning"]


def managed_instance(
    name: str,
    shared: Shared,
    server: Sequence[str],
    ports: tuple[int, int],
    labels: Iterable[str],
    memory: int,
) -> list[str]:
    """A monitor that starts and owns a model server without models, and loads what is assigned to it. `ports`: gRPC and
    REST; `memory`: bytes."""
    return modelplane(
        "monitor",
        *shared.flags(),
        *_place(name),
        "--manage",
        *(f"--label={label}" for label in labels),
        *(f"--memory={memory}" for _ in range(bool(memory))),
        "--",
        *server,
        *(f"--port={ports[0]}", f"--rest_api_port={ports[1]}", *shared.server_flags()),
    )


def _place(name: str) -> tuple[str, ...]:
    return ("--instance", name, "--advertise-address", "127.0.0.1", "--drain-deadline", f"{DRAIN_DEADLINE:g}")


def instance(
    name: str, shared: Shared, server: Sequence[str], grpc_port: int, rest_port: int, models: Path
) -> list[str]:
    """A monitor that starts and owns a model server, which reads its models from the file `models`."""
    return modelplane(
        "monitor",
        *shared.flags(),
        *_place(name),
        "--",
        *server,
        *(f"--port={grpc_port}", f"--rest_api_port={rest_port}", *shared.server_flags()),
        *(f"--model_config_file={models}", "--model_config_file_poll_wait_seconds=1"),
        "--file_system_poll_wait_seconds=1",
        # A version that is still being copied gets some seconds; one that is broken must not hold up the others.
        *("--max_num_load_retries=5", "--load_retry_interval_micros=1000000", "--num_load_threads=4"),
    )


def shown_python() -> str:
    """How a person at this shell would call this interpreter."""
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found and os.path.abspath(found) == os.path.abspath(sys.executable):  # noqa: PTH100  links are not followed
            return name
    return shown_path(Path(sys.executable))


def shown_binary(name: str) -> str:
    """How a person at this shell would call a program that find_binary finds; its mere name if it isn't there."""
    if shutil.which(name):
        return name
    found = find_binary(name)
    return shown_path(Path(found)) if found else name


def shown_path(path: Path) -> str:
    """A path as it can be typed, relative where it is below the current folder."""
    with contextlib.suppress(ValueError, FileNotFoundError):  # it is somewhere else; the current folder is gone
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))
