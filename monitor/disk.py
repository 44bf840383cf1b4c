"""What a model's base path looks like on this machine's disk. Invariant: "it is not there" is only said of a local path
that the system itself called missing; all that can't be told from here (a URI, no permission) is None.

Whether this machine's disk is the server's is not known here: monitor/traps.py asks for evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from monitor.servables import Policy

_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb", "model.tflite", "export.meta")
"""One of these makes a folder a model (cc/saved_model/constants.h; the last two: TF Lite and SessionBundle)."""


@dataclass(frozen=True, slots=True)
class Look:
    """`there`: None if it can't be told. `versions`: all version folders; `empty`: those of the wanted ones that hold
    no model."""

    there: bool | None = None
    versions: frozenset[int] = frozenset()
    empty: frozenset[int] = frozenset()


def look(base_path: str, policy: Policy | None) -> Look:
    """Look once. Blocking, for ever on a dead network file system: call it in a thread that nobody waits for."""
    if not base_path.startswith("/"):
        return Look()
    try:
        folders = {version: one for one in Path(base_path).iterdir() if (version := version_of(one.name)) is not None}
    except (FileNotFoundError, NotADirectoryError):
        return Look(there=False)
    except OSError:
        return Look()
    wanted = (policy or Policy()).choose(folders)
    empty = frozenset(version for version in wanted if not holds_model(folders[version]))
    return Look(True, frozenset(folders), empty)


def version_of(folder: str) -> int | None:
    """`7` and `007` are version 7; `v5`, `4.5` and `.tmp3` are no version (file_system_storage_path_source.cc)."""
    return int(folder) if folder.isascii() and folder.isdigit() and int(folder) < 2**63 else None


def holds_model(folder: Path) -> bool:
    """Whether there is a model in a version's folder; also where that can't be told."""
    try:
        return any((folder / name).exists() for name in _MODEL_FILES)
    except OSError:
        return True
