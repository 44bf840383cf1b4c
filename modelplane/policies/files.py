"""The policies of `-f FILE|DIR|-`. Invariant: all of them are read and right, or nothing is returned and every problem
of every file is told, with its line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from modelplane.errors import UserError
from modelplane.policies.documents import Document, DocumentError, read_documents
from modelplane.table import clean
from registry.policy.model import Policy
from registry.policy.read import PolicyErrors, read_policy
from registry.policy.shapes import spell

_SUFFIXES = (".yaml", ".yml", ".json")
_LARGEST = 16 * 2**20
"""Bytes of a file: a mistake such as a model's own file, and no policies of tens of thousands of models, is larger."""
_MOST_TOLD = 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """One policy of a file. `where`: FILE:LINE of its document."""

    policy: Policy
    document: Mapping[str, Any]
    where: str


def read_files(names: Iterable[str], stdin: TextIO | None = None) -> list[Wanted]:
    """Every policy of files and folders, in their order. Raises UserError with every problem."""
    problems: list[str] = []
    wanted: list[Wanted] = []
    known: dict[str, str] = {}
    for name, text in _texts(names, stdin or sys.stdin, problems):
        for one in _policies(name, text, problems):
            model = one.policy.name
            if model in known:
                problems.append(f"{one.where}: model {model!r} is there twice; it stands in {known[model]} too")
            known.setdefault(model, one.where)
            wanted.append(one)
    if problems:
        raise UserError(_told(problems))
    if not wanted:
        raise UserError(f"there is no policy in {', '.join(names)}")
    return wanted


def _told(problems: list[str]) -> str:
    lines = [clean(problem) for problem in problems[:_MOST_TOLD]]
    if len(problems) == 1:
        return f"{lines[0]}; nothing was written"
    more = len(problems) - _MOST_TOLD
    rest = [f"and {more} more"] if more > 0 else []
    return "\n  ".join([f"nothing was written, for there are {len(problems)} problems", *lines, *rest])


def _texts(names: Iterable[str], stdin: TextIO, problems: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        if name == "-":
            yield from _text("<stdin>", lambda: stdin.buffer.read(_LARGEST + 1), problems)
            continue
        for path in _paths(Path(name), problems):
            yield from _text(str(path), lambda path=path: _start(path), problems)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST + 1)


def _paths(path: Path, problems: list[str]) -> list[Path]:
    try:
        if not path.is_dir():
            return [path]
        found = sorted(one for one in path.iterdir() if one.suffix in _SUFFIXES and one.is_file())
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
        return []
    if not found:
        problems.append(f"{path}: no file in it ends with {', '.join(_SUFFIXES)}")
    return found


def _text(name: str, read: Any, problems: list[str]) -> Iterator[tuple[str, str]]:
    try:
        raw: bytes = read()
        if len(raw) > _LARGEST:
            problems.append(f"{name}: it is larger than {_LARGEST // 2**20} MiB")
        else:
            yield name, raw.decode("utf-8-sig")
    except OSError as error:
        problems.append(f"{name}: {error.strerror}")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problems.append(f"{name}:{line}: not UTF-8")


def _policies(name: str, text: str, problems: list[str]) -> Iterator[Wanted]:
    try:
        documents = read_documents(text)
    except DocumentError as error:
        problems.append(f"{name}:{error.line}: {error}")
        return
    for document in documents:
        try:
            policy = read_policy(document.value)
        except PolicyErrors as errors:
            problems += _lines(name, document, errors)
        else:
            yield Wanted(policy, document.value, f"{name}:{document.line(())}")


def _lines(name: str, document: Document, errors: PolicyErrors) -> list[str]:
    ordered = sorted(errors.problems, key=lambda one: document.line(one.path))
    return [f"{name}:{document.line(one.path)}: {spell(one.path)}: {one.text}" for one in ordered]
