"""Which versions of which models a server should have: version policies over version folders.

Invariant: one model whose base path can't be read stops the whole poll, and so the updates of all models, as TF
Serving's file_system_storage_path_source.cc does; `poll` then raises and nothing has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_server.errors import Code, ServingError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Specific:
    """Exactly these versions, as far as they are on disk."""

    versions: frozenset[int]


@dataclass(frozen=True, slots=True)
class Latest:
    """The highest so many; `count` None: all of them."""

    count: int | None = 1


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where one model's version folders are, and which of them are wanted."""

    name: str
    base_path: Path
    policy: Specific | Latest


def read_policy(config: Any) -> Specific | Latest:
    """The policy of a ModelConfig (file_system_storage_path_source.proto); latest 1 where it names none."""
    policy = config.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return Latest(None)
        case "specific":
            return Specific(frozenset(policy.specific.versions))
        case _:
            return Latest(policy.latest.num_versions or 1)


def choose(policy: Specific | Latest, on_disk: Iterable[int]) -> set[int]:
    """The versions of `on_disk` that a policy wants."""
    if isinstance(policy, Specific):
        return set(policy.versions) & set(on_disk)
    newest = sorted(set(on_disk), reverse=True)
    return set(newest[: policy.count])


def version_of(folder: str) -> int | None:
    """`7` and `007` are version 7; `v5`, `4.5` and `.tmp3` are no version."""
    return int(folder) if folder.isascii() and folder.isdigit() and int(folder) < 2**63 else None


def poll(sources: Collection[ModelSource]) -> dict[str, dict[int, Path]]:
    """Look at every base path once: the wanted versions by model. Raises ServingError at the first that fails."""
    found: dict[str, dict[int, Path]] = {}
    for source in sources:
        try:
            names = [entry.name for entry in source.base_path.iterdir()]
        except OSError as error:
            raise ServingError(
                Code.NOT_FOUND,
                f"Could not find base path {source.base_path} for servable {source.name} with error "
                f"NOT_FOUND: {source.base_path} not found",
            ) from error
        folders = {version: source.base_path / name for name in names if (version := version_of(name)) is not None}
        wanted = choose(source.policy, folders)
        if not wanted:
            log.warning(
                "No versions of servable %s found under base path %s. Did you forget to name your leaf directory as a "
                "number (eg. '/1/')?",
                source.name,
                source.base_path,
            )
        found[source.name] = {version: folders[version] for version in wanted}
    return found
