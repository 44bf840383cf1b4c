"""What has to hold for a server to be managed, and what of it is its own. Pure, but for `started_empty`.

Invariant: a server whose configuration somebody else changes is refused: what it re-reads from a file, or what nobody
here knows of it, would be lost with the next reload, which lists the whole configuration.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monitor.errors import MonitorError
from monitor.pb import tfs_pb2 as tfs
from monitor.server_flags import ServerFlags, named_flags

EMPTY = "model_config_list {\n}\n"
_GIVEN = (
    # The monitor tries again by itself, and tells of it: the server's own tries show no error before the last of them,
    # and hold up every later reload.
    ("max_num_load_retries", "0"),
    # One load at a time otherwise, each holding up all others.
    ("num_load_threads", "4"),
)


@dataclass(frozen=True, slots=True)
class Consent:
    """This server is managed. `own`: the models that it has by its own flags or file, which stay as they are.
    `sees_disk`: this process sees the server's disk, under the same paths, so what is missing here is missing there."""

    own: Mapping[str, tfs.ModelConfig] = field(default_factory=dict)
    sees_disk: bool = False


def own_models(
    flags: ServerFlags | None, configs: Sequence[tfs.ModelConfig] | None, named: Sequence[str] = ()
) -> dict[str, tfs.ModelConfig]:
    """The server's own models: `configs` are those of its file, None: it has none; `named` are models that are watched
    and of which nothing else is known. Raises MonitorError where they can't be kept."""
    if flags is not None:
        _check(flags)
    if configs is not None:
        return {config.name: config for config in configs}
    if named and flags is None:
        raise MonitorError(
            f"--manage: how the server was told of the model {named[0]} is not known, so it could not be kept; give "
            "the server's --model-config-file, or start it without models"
        )
    if flags is None or not flags.model_base_path:
        return {}
    # main.cc (BuildSingleModelConfig): the default policy and platform.
    only = tfs.ModelConfig(name=flags.model_name, base_path=flags.model_base_path, model_platform="tensorflow")
    return {flags.model_name: only}


def _check(flags: ServerFlags) -> None:
    if flags.config_poll_wait > 0:
        raise MonitorError(
            f"--manage: the server re-reads its model config file (--model_config_file_poll_wait_seconds="
            f"{flags.config_poll_wait}), which undoes what modelplane loads; leave that flag out"
        )
    if flags.poll_wait <= 0:
        raise MonitorError(
            f"--manage: the server does not look at its disk again (--file_system_poll_wait_seconds={flags.poll_wait}),"
            " so it loads nothing that it is told later; leave that flag out"
        )


@contextlib.contextmanager
def started_empty(command: Sequence[str], flags: ServerFlags, environment: Mapping[str, str]) -> Iterator[list[str]]:
    """The command of a server that is to be managed. One without models of its own gets an empty list of them, else it
    would not start; and what makes it fit to be managed, where its command does not say otherwise."""
    if flags.model_config_file or (flags.model_base_path and not _assumed(command, environment)):
        yield list(command)
        return
    with tempfile.TemporaryDirectory(prefix="modelplane-") as folder:
        file = Path(folder) / "models.config"
        file.write_text(EMPTY, encoding="utf-8")
        said = named_flags(command)
        given = [f"--{name}={value}" for name, value in _GIVEN if name not in said]
        yield [*command, f"--model_config_file={file}", *given]


def _assumed(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether its base path is only the image's entrypoint's guess, /models/model."""
    return "model_base_path" not in named_flags(command) and not environment.get("MODEL_NAME")
