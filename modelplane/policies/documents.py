"""YAML (and so JSON) as JSON documents that know on which line each field stands. Pure.

Invariant: whatever text is read, the outcome is documents or one DocumentError with a line, never another exception.
Scalars are read by YAML 1.2's core schema, not by YAML 1.1, in which `no` is false and `1:30` is ninety.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from registry.policy.shapes import Path

_DEEPEST = 50
_TOO_DEEP = f"nested more than {_DEEPEST} deep"
_MOST_NODES = 100_000
"""Aliases can make a few lines into a billion nodes."""
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
}
_MOST_DIGITS = 100
_TAG = "tag:yaml.org,2002:"
_TAGS = {f"{_TAG}{kind}" for kind in ("str", "map", "seq")}


class DocumentError(ValueError):
    """A text that is no YAML, or YAML of which no JSON can be made; `line` counts from 1."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON value (keys of objects are strings), and the line of each field by its path."""

    value: Any
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int:
        """Where a field stands; of one that is missing, where the object that lacks it does."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_documents(text: str) -> list[Document]:
    """All documents of a text; empty ones are left out. Raises DocumentError."""
    try:
        return [_read(node) for node in _nodes(text) if not _empty(node)]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        said = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        # A character that YAML does not allow has no mark but a position.
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        raise DocumentError(line + 1, f"not YAML: {said}") from None


def _nodes(text: str) -> Iterator[yaml.Node]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                yield node
    finally:
        loader.dispose()


def _empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value == ""


def _read(node: yaml.Node) -> Document:
    reader = _Reader()
    value = reader.read(node, ())
    return Document(value, reader.lines)


class _Loader(yaml.SafeLoader):
    """Takes every plain scalar for text; what it is, `_scalar` says."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Where deep nesting is found, before the stack is full of it."""
        self._depth += 1
        if self._depth > _DEEPEST + 1:
            raise DocumentError(self.line + 1, _TOO_DEEP)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Reader:
    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self._count = 0

    def read(self, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._count += 1
        if len(path) > _DEEPEST:
            raise DocumentError(line, _TOO_DEEP)
        if self._count > _MOST_NODES:
            raise DocumentError(line, f"more than {_MOST_NODES} values")
        if node.tag not in _TAGS:
            raise DocumentError(line, f"the tag {node.tag.replace(_TAG, '!!')} is not allowed; leave it out")
        match node:
            case yaml.MappingNode():
                return self._mapping(node, path)
            case yaml.SequenceNode():
                return [self.read(item, (*path, at)) for at, item in enumerate(node.value)]
            case _:
                return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        read: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise DocumentError(line, "a key has to be a word or a number")
            # As it is written: `3: 90` has the key "3", and a label may be called `no`.
            key = key_node.value
            if key in read:
                raise DocumentError(line, f"the key {key!r} is there twice; it stands in line {self.lines[*path, key]}")
            self.lines[*path, key] = line
            read[key] = self.read(value_node, (*path, key))
        return read


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    if getattr(node, "style", None) is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= _MOST_DIGITS:
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
            return number
    return text


def write_document(value: Any) -> str:
    """A JSON value as YAML that `read_documents` reads back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


class _Dumper(yaml.SafeDumper):
    """Keys that are numbers without quotes, as people write them; values that YAML 1.1 or 1.2 would take for something
    else than a string in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors: the same list twice is written twice."""
        return True


def _represent_mapping(dumper: _Dumper, data: Mapping[str, Any]) -> yaml.MappingNode:
    pairs = []
    for key, value in data.items():
        tag = f"{_TAG}int" if re.fullmatch(r"0|[1-9][0-9]*", key) else f"{_TAG}str"
        pairs.append((dumper.represent_scalar(tag, key), dumper.represent_data(value)))
    return yaml.MappingNode(f"{_TAG}map", pairs, flow_style=None)


def _represent_text(dumper: _Dumper, data: str) -> yaml.ScalarNode:
    unlike = data in _WORDS or _INT.fullmatch(data) or _FLOAT.fullmatch(data)
    return dumper.represent_scalar(f"{_TAG}str", data, style='"' if unlike else None)


_Dumper.add_representer(dict, _represent_mapping)
_Dumper.add_representer(str, _represent_text)
