"""The policies that `modelplane up --manage` writes to begin with: one file for each model. Invariant: they are written
anew at each start, so nobody's edits are to be kept there, and they say so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from modelplane.local.models import Source
from registry.keys import encode_name


def policy(model: Source) -> str:
    """The shortest one: the newest version, on all instances. (A string of JSON is one of YAML.)"""
    return (
        "# Written by `modelplane up --manage` at each start; copy it to change it.\n"
        "apiVersion: modelplane/v1\n"
        "kind: Model\n"
        "metadata:\n"
        f"  name: {json.dumps(model.name, ensure_ascii=False)}\n"
        "spec:\n"
        f"  basePath: {json.dumps(str(model.path), ensure_ascii=False)}\n"
    )


def write_policies(models: Iterable[Source], folder: Path) -> None:
    """Put them there, in place of those of the last run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for model in models:
        (folder / f"{encode_name(model.name)}.yaml").write_text(policy(model), encoding="utf-8")
