"""`modelplane undrain INSTANCE`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from modelplane.access import FleetConfig
from modelplane.commandline import CommandLine
from modelplane.commands.drain import WaitConfig, until_done
from modelplane.draining import Follower, Goal, targets_of
from modelplane.errors import INTERRUPTED, OptionError, UserError
from modelplane.logs import LogOptions, configure
from modelplane.table import listed
from modelplane.waiting import Display
from modelplane.wishes import Registry, wishes
from registry.drains import DrainRecord, DrainTarget, removed


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "undrain",
        [WaitConfig, FleetConfig, LogOptions],
        usage="INSTANCE [options]",
        arguments={"INSTANCE": "the name of one that is drained, or is to be"},
        description="Take a drain back, of the whole instance or of some models, and wait until its monitor has let\n"
        "clients in again. Exit codes as of `modelplane drain`; 1 too if nothing of it was to be drained.",
        examples=("modelplane undrain tfs-0", "modelplane undrain tfs-0 --model digits@3"),
    )


def run(argv: Sequence[str]) -> int:
    """Take it back."""
    settings = command_line().parse(argv)
    instance = settings.arguments.get("INSTANCE", "")
    if not instance:
        raise OptionError("say which instance: `modelplane undrain INSTANCE`; `modelplane status` lists them")
    wait = settings[WaitConfig]
    targets = targets_of(wait.drained_model)
    configure(settings[LogOptions].logging)
    return asyncio.run(_undrain(settings[FleetConfig], instance, targets, wait))


async def _undrain(fleet: FleetConfig, instance: str, targets: tuple[DrainTarget, ...], wait: WaitConfig) -> int:
    def decide(registry: Registry) -> tuple[DrainRecord | None, tuple[str, ...]]:
        known = registry.drains.get(instance)
        if known is None:
            others = sorted(registry.drains)
            raise UserError(
                f"nothing of instance {instance!r} is drained; "
                + (f"of {listed(others)} something is" if others else "nor of any other")
            )
        try:
            return removed(known, targets), ()
        except ValueError as error:
            raise UserError(f"instance {instance}: {error}") from None

    async with wishes(fleet) as registry:
        await registry.change(instance, decide)
        what = f"{instance}: {', '.join(map(str, targets))}" if targets else instance
        display = Display(f"taking back {what}", as_json=wait.output == "json")
        document: dict[str, object] = {"instance": instance, "models": [str(target) for target in targets]}
        if not wait.wait:
            display.end(f"{what} is no longer to be drained", {**document, "state": "asked"})
            return 0
        follower = Follower(instance, DrainRecord(targets), Goal.BACK, registry.keyspace)
        code = await until_done(registry, follower, display, wait.deadline)
        display.end("" if code else f"{what} is back", {**document, "state": "asked" if code else "back"})
        if code:
            why = "stopped waiting" if code == INTERRUPTED else f"not yet back after {wait.deadline:g} s"
            still = f"; still waited for: {'; '.join(display.waiting)}" if display.waiting else ""
            sys.stderr.write(f"modelplane undrain: {what}: {why}{still}\n")
        return code
