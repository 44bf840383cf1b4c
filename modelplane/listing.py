"""What `modelplane get` prints: a table, JSON or YAML, once or again whenever it changes.

Invariant: with `-o json -w` each line is one JSON object, which says what it is about and how it is now; one that is
gone comes once more with `"deleted": true`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from modelplane.lines import Line, show
from modelplane.policies.documents import write_document


def camel_case(value: Any) -> Any:
    """A control plane's page, whose keys have underscores as protobuf's do, with keys as all that commands print."""
    if isinstance(value, Mapping):
        return {_camel(key): camel_case(one) for key, one in value.items()}
    return [camel_case(one) for one in value] if isinstance(value, list) else value


def _camel(key: str) -> str:
    first, *rest = key.split("_")
    return first + "".join(word.capitalize() for word in rest)


@dataclass(frozen=True, slots=True)
class Listing:
    """`kind`: what is listed, in the plural. `lines`: as a table; `items`: the same for machines, by a name of each;
    `yaml`: how it is spelt in YAML if not as `items` are. `failed`: something may be missing."""

    kind: str
    lines: Sequence[Line]
    items: Mapping[str, Any]
    yaml: str | None = None
    failed: bool = field(default=False)

    def print(self, output: str, stream: TextIO) -> None:
        """All of it."""
        if output == "json":
            document = {self.kind: list(self.items.values())}
            stream.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        elif output == "yaml":
            stream.write(write_document({self.kind: list(self.items.values())}) if self.yaml is None else self.yaml)
        else:
            show(self.lines, stream)
        stream.flush()

    def print_changes(self, before: Listing | None, output: str, stream: TextIO) -> None:
        """What is new or different since `before`."""
        if output in ("json", "yaml"):
            old = before.items if before else {}
            changed = [item for name, item in self.items.items() if old.get(name) != item]
            gone = [{**item, "deleted": True} for name, item in old.items() if name not in self.items]
            for item in (*changed, *gone):
                text = json.dumps(item, ensure_ascii=False) + "\n"
                stream.write(text if output == "json" else f"---\n{write_document(item)}")
        elif before is None:
            show(self.lines, stream)
        else:
            show([line for line in self.lines if line not in before.lines], stream)
            show([Line(f"{name}: gone") for name in before.items if name not in self.items], stream)
        stream.flush()
