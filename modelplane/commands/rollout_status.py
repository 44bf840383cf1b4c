"""`modelplane rollout status MODEL`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from modelplane.access import FleetConfig, located, read_fleet, watch_fleet
from modelplane.commandline import CommandLine
from modelplane.errors import FAILURE
from modelplane.fleet import Picture
from modelplane.lines import show
from modelplane.logs import LogOptions, configure
from modelplane.policies.changing import named_model
from modelplane.policies.progress import Progress, progress
from modelplane.policies.view import PolicyView
from modelplane.policies.waiting import Verdict
from modelplane.screen import Screen
from registry.keys import Keyspace

GOING_ON = 4


@dataclass(frozen=True, slots=True)
class RolloutStatusConfig:
    """Whether to wait, and how to print it."""

    wait: bool = field(default=False, metadata={"short": "-w", "help": "until it has ended, well or not"})
    deadline: float = field(
        default=0.0, metadata={"metavar": "SECONDS", "help": "with --wait: at most so long; 0: as long as it takes"}
    )
    output: str = field(
        default="text",
        metadata={
            "short": "-o",
            "choices": ("text", "json"),
            "help": "json: one object; with --wait when it has ended",
        },
    )

    def __post_init__(self) -> None:
        if not 0 <= self.deadline < float("inf"):
            raise ValueError(f"--deadline: {self.deadline} is not possible; give 0 or more seconds")


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "rollout status",
        [RolloutStatusConfig, FleetConfig, LogOptions],
        usage="MODEL [--wait] [options]",
        arguments={"MODEL": "its name, as clients spell it"},
        description="Tell how far a model's rollout is: versions, traffic, a canary's step with what was counted in\n"
        "it and what its gates say. Exit code 0: it is done. 1: it failed or was rolled back, or is not done within\n"
        f"--deadline. {GOING_ON}: it is going on.",
        examples=("modelplane rollout status digits", "modelplane rollout status digits --wait --deadline 3600"),
    )


def run(argv: Sequence[str]) -> int:
    """Print it."""
    settings = command_line().parse(argv)
    model, config = named_model(settings, "rollout status MODEL"), settings[RolloutStatusConfig]
    configure(settings[LogOptions].logging)
    if config.wait:
        return asyncio.run(_wait(settings[FleetConfig], config, model))
    return asyncio.run(_once(settings[FleetConfig], config, model))


async def _once(fleet: FleetConfig, config: RolloutStatusConfig, model: str) -> int:
    view = _view(fleet)
    found = progress(model, await read_fleet(fleet, view), view)
    _print(found, config)
    return {Verdict.DONE: 0, Verdict.FAILED: FAILURE, Verdict.WAITING: GOING_ON}[found.verdict]


async def _wait(fleet: FleetConfig, config: RolloutStatusConfig, model: str) -> int:
    view = _view(fleet)
    screen = Screen(sys.stdout, live=sys.stdout.isatty() and config.output == "text")
    found: Progress | None = None
    head, said = "", set[str]()
    try:
        async with asyncio.timeout(config.deadline or None), aclosing(watch_fleet(fleet, view)) as pictures:
            async for found in _of(pictures, view, model):
                if found.verdict is not Verdict.WAITING:
                    break
                if config.output == "text" and not screen.live:
                    # A head may come again, as with a step that is taken back; what is wrong is said once.
                    fresh = [found.head] if found.head != head else []
                    screen.lines([*fresh, *(one for one in found.troubles if one not in said)])
                head = found.head
                said.update(found.troubles)
                screen.block([line.text for line in found.lines])
    except TimeoutError:
        sys.stderr.write(f"modelplane rollout status: not done after {config.deadline:g} s\n")
    screen.block([])
    if found is not None:
        _print(found, config)
    return 0 if found is not None and found.verdict is Verdict.DONE else FAILURE


async def _of(pictures: AsyncGenerator[Picture, None], view: PolicyView, model: str) -> AsyncGenerator[Progress, None]:
    async for picture in pictures:
        yield progress(model, picture, view)


def _view(fleet: FleetConfig) -> PolicyView:
    return PolicyView(Keyspace(located(fleet)[0].prefix))


def _print(found: Progress, config: RolloutStatusConfig) -> None:
    if config.output == "json":
        sys.stdout.write(json.dumps(found.document, indent=2, ensure_ascii=False) + "\n")
    else:
        show(found.lines, sys.stdout)
