"""What is published agrees with the reader: the schema, the documentation's fields, and the examples in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelplane.policies.documents import read_documents
from registry.policy.fields import MODEL
from registry.policy.read import read_policy
from registry.policy.schema import schema_text
from registry.policy.shapes import Entry
from tests.registry.policy.published import DOCS, entries, policy_page

EXAMPLES = sorted((DOCS.parent / "examples" / "policies").iterdir())


def test_the_published_schema_is_the_readers() -> None:
    assert (DOCS / "model.schema.json").read_text(encoding="utf-8") == schema_text(), (
        "run tests.registry.policy.published"
    )


def test_the_documentation_has_every_field() -> None:
    assert (DOCS / "policy.md").read_text(encoding="utf-8") == policy_page(), (
        "run python -m tests.registry.policy.published"
    )


@pytest.mark.parametrize(("path", "entry"), list(entries(MODEL)), ids=lambda one: one if isinstance(one, str) else "")
def test_every_field_has_an_example_that_is_allowed(path: str, entry: Entry) -> None:
    (document,) = read_documents(entry.example)
    problems: list[Any] = []
    (name,) = document.value
    entry.shape.read(document.value[name], (), problems)
    assert (name, problems) == (path.split(".")[-1].removesuffix("[]"), [])
    assert entry.help.endswith(".")


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_are_policies(file: Path) -> None:
    for document in read_documents(file.read_text(encoding="utf-8")):
        read_policy(document.value)


def test_the_pages_own_policies_are_policies() -> None:
    text = (DOCS / "policy.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in text.split("```yaml\n")[1:]]
    assert blocks
    for block in blocks:
        for document in read_documents(block):
            read_policy(document.value)
