"""A document becomes a Policy, or all that is wrong with it is told at once. Pure.

Invariant: `read_policy` returns or raises PolicyErrors with at least one problem, whatever JSON value it is given.
"""

from __future__ import annotations

from typing import Any

from registry.policy.fields import MODEL
from registry.policy.model import Policy
from registry.policy.shapes import Problem


class PolicyErrors(ValueError):  # noqa: N818 - several problems
    """What is wrong with a document."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0]}{more}")
        self.problems = problems


def read_policy(document: Any) -> Policy:
    """Read a JSON document. Raises PolicyErrors."""
    problems: list[Problem] = []
    policy = MODEL.read(document, (), problems)
    if problems or not isinstance(policy, Policy):
        raise PolicyErrors(tuple(problems))
    return policy
