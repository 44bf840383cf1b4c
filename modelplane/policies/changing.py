"""One change to the policy of one model, as `label`, `traffic`, `delete` and `rollout` make it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from modelplane.access import FleetConfig
from modelplane.commandline import Settings
from modelplane.errors import OptionError
from modelplane.logs import LogOptions, configure
from modelplane.policies.store import Change, Held, Result, policy_store
from modelplane.table import clean
from modelplane.who import operator


@dataclass(frozen=True, slots=True)
class ChangeConfig:
    """Of every command that changes a policy."""

    message: str = field(default="", metadata={"short": "-m", "metavar": "TEXT", "help": "why, for the history"})
    if_generation: int | None = field(
        default=None,
        metadata={
            "metavar": "N",
            "help": "only if the policy is at generation N now (0: only if there is none); else exit code 3",
        },
    )


def named_model(settings: Settings, usage: str) -> str:
    """The argument MODEL. Raises OptionError."""
    model = settings.arguments.get("MODEL", "")
    if not model:
        raise OptionError(f"say which model: `modelplane {usage}`; `modelplane get models` lists them")
    return model


def change_one(
    settings: Settings, model: str, decide: Callable[[Held], Change | None], *, retry: bool = True
) -> Result:
    """Do it, and say so. Raises UserError."""
    configure(settings[LogOptions].logging)
    result = asyncio.run(_change(settings[FleetConfig], settings[ChangeConfig], model, decide, retry=retry))
    sys.stdout.write(f"model {clean(model)}: {result.done}, generation {result.generation}\n")
    return result


async def _change(
    fleet: FleetConfig, change: ChangeConfig, model: str, decide: Callable[[Held], Change | None], *, retry: bool
) -> Result:
    async with policy_store(fleet, operator(), change.message) as store:
        return await store.change(model, decide, retry=retry, if_generation=change.if_generation)
