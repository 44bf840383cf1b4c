"""What is published of the table of fields: the schema, and the tables of docs/policy.md. `python -m
tests.registry.policy.published` writes both anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from registry.policy.fields import MODEL
from registry.policy.schema import schema_text
from registry.policy.shapes import Entry, ListOf, Object, Shape

DOCS = Path(__file__).parents[3] / "docs"
_BEGIN, _END = "<!-- fields: made of registry/policy/fields.py -->\n", "<!-- end of fields -->\n"


def entries(shape: Shape, path: str = "") -> Iterator[tuple[str, Entry]]:
    """Every field with its path, objects before what is in them."""
    if isinstance(shape, Object):
        for name, entry in shape.entries.items():
            here = f"{path}.{name}" if path else name
            yield here, entry
            yield from entries(entry.shape, here)
    elif isinstance(shape, ListOf):
        yield from entries(shape.item, f"{path}[]")


def fields() -> str:
    """The part of docs/policy.md between the marks."""
    parts = []
    for path, entry in entries(MODEL):
        allowed = "its fields are below" if isinstance(entry.shape, Object) else entry.shape.allowed
        if isinstance(entry.shape, ListOf) and isinstance(entry.shape.item, Object):
            allowed = f"a list of 1 to {entry.shape.most} objects, whose fields are below"
        default = "must be there" if entry.required else entry.default or "none"
        parts.append(
            f"**`{path}`** {entry.help}\n\n- Allowed: {allowed}\n- Default: {default}\n- Example: `{entry.example}`\n\n"
        )
    return "".join(parts)


def policy_page() -> str:
    """docs/policy.md as it has to be."""
    before, rest = (DOCS / "policy.md").read_text(encoding="utf-8").split(_BEGIN)
    return f"{before}{_BEGIN}\n{fields()}{_END}{rest.split(_END)[1]}"


if __name__ == "__main__":
    page = policy_page()
    (DOCS / "policy.md").write_text(page, encoding="utf-8")
    (DOCS / "model.schema.json").write_text(schema_text(), encoding="utf-8")
