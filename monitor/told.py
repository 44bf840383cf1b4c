"""Conditions in the log. Invariant: each is said once when it begins and once when it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from registry.records import Condition

log = logging.getLogger(__name__)

ConditionKey: TypeAlias = tuple[str, str, str]
"""Name, model, and what tells two of one name and model apart; a new text does not make it a new one."""


@dataclass(slots=True)
class Told:
    """Those of one instance that hold."""

    instance: str
    _now: dict[ConditionKey, Condition] = field(default_factory=dict)

    def update(self, found: Mapping[ConditionKey, Condition]) -> tuple[Condition, ...]:
        """These hold now, and no others; sorted."""
        for key in sorted(found.keys() - self._now.keys()):
            log.warning("%s on %s: %s", found[key].name, self.instance, found[key].text)
        for key in sorted(self._now.keys() - found.keys()):
            log.info("no longer %s on %s: %s", self._now[key].name, self.instance, self._now[key].text)
        self._now = dict(found)
        return tuple(found[key] for key in sorted(found))
