"""The JSON schema of a document, for editors and other tools. Invariant: it refuses nothing that `read_policy` reads.
It can't tell what fields say together, nor how large a duration or a share may be; `read_policy` has the last word."""

from __future__ import annotations

import json
from typing import Any

from registry.policy.fields import MODEL


def schema() -> dict[str, Any]:
    """The schema, JSON Schema draft 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "modelplane: the policy of a model",
        **MODEL.schema,
    }


def schema_text() -> str:
    """As it is published: docs/model.schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"
