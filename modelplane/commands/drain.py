"""`modelplane drain INSTANCE`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from modelplane.access import FleetConfig
from modelplane.commandline import CommandLine
from modelplane.draining import (
    Follower,
    Goal,
    check_known,
    refuse_last,
    refuse_unheard,
    spares,
    targets_of,
    unheard_before,
)
from modelplane.errors import FAILURE, INTERRUPTED, UNHEARD, OptionError
from modelplane.logs import LogOptions, configure
from modelplane.waiting import Display
from modelplane.who import operator
from modelplane.wishes import Registry, Wishes, wishes
from registry.drains import DrainRecord, added


@dataclass(frozen=True, slots=True)
class WaitConfig:
    """What of an instance, and how long to wait."""

    drained_model: tuple[str, ...] = field(
        default=(),
        metadata={
            "flag": "--model",
            # A container whose monitor has MODELPLANE_MODEL must not drain that model alone.
            "key": "drain-model",
            "separator": None,
            "metavar": "NAME[@VERSION]",
            "help": "only this model, or this version of it, while the instance goes on with the others; repeatable",
        },
    )
    deadline: float = field(
        default=60.0,
        metadata={"metavar": "SECONDS", "help": "how long to wait; what was asked for holds all the same"},
    )
    wait: bool = field(default=True, metadata={"help": "--no-wait: ask for it and return"})
    output: str = field(
        default="text",
        metadata={"short": "-o", "choices": ("text", "json"), "help": "json: the result as one object, no progress"},
    )

    def __post_init__(self) -> None:
        if not 0 < self.deadline < float("inf"):
            raise ValueError(f"--deadline: {self.deadline} is not possible; give more than 0 seconds")


@dataclass(frozen=True, slots=True)
class DrainConfig:
    """How to drain."""

    stop: bool = field(
        default=False,
        metadata={"help": "then stop the server, where its monitor has started it; when started again it serves again"},
    )
    force: bool = field(
        default=False,
        metadata={
            "help": "even if it is the last that is ready for a model; with --stop also without any control plane"
        },
    )
    message: str = field(
        default="", metadata={"short": "-m", "metavar": "TEXT", "help": "why, for whoever finds it drained"}
    )


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "drain",
        [WaitConfig, DrainConfig, FleetConfig, LogOptions],
        usage="INSTANCE [options]",
        arguments={"INSTANCE": "its name, as `modelplane status` shows it"},
        description="Let an instance, or some models of it, get no new requests, wait until all that it got are\n"
        "answered, and keep it so until `modelplane undrain`, across restarts too. Clients see nothing of it.\n"
        "Exit code 0: drained (stopped with --stop). 1: not within the deadline, or refused. 2: wrong usage.\n"
        "4: drained, but no control plane could say that nothing is in flight. 130: Ctrl-C; like the deadline it ends\n"
        "the waiting, not the drain.",
        examples=(
            "modelplane drain tfs-0 --message 'new disk'",
            "modelplane drain tfs-0 --stop",
            "modelplane drain tfs-0 --model digits@3 --deadline 600",
        ),
    )


def run(argv: Sequence[str]) -> int:
    """Drain it."""
    settings = command_line().parse(argv)
    instance = settings.arguments.get("INSTANCE", "")
    if not instance:
        raise OptionError("say which instance: `modelplane drain INSTANCE`; `modelplane status` lists them")
    wait, config = settings[WaitConfig], settings[DrainConfig]
    targets = targets_of(wait.drained_model)
    if targets and config.stop:
        raise OptionError("--stop with --model: the server can't be stopped while it goes on with other models")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    force = config.stop and config.force
    wish = DrainRecord(targets, operator(), now, config.message, config.stop, force)
    configure(settings[LogOptions].logging)
    return asyncio.run(_drain(settings[FleetConfig], instance, wish, wait, force=config.force))


async def _drain(fleet: FleetConfig, instance: str, wish: DrainRecord, wait: WaitConfig, *, force: bool) -> int:
    def decide(registry: Registry) -> tuple[DrainRecord, frozenset[str]]:
        check_known(registry.picture, instance, wish.targets)
        wanted = added(registry.drains.get(instance), wish)
        left = spares(registry.picture, instance, wanted, registry.drains)
        if not force:
            refuse_last(instance, left)
            if wish.stop:
                refuse_unheard(registry.picture, instance)
        return wanted, left.instances

    async with wishes(fleet) as registry:
        _, decided_by = await registry.change(instance, decide)
        goal = Goal.STOPPED if wish.stop else Goal.DRAINED
        what = f"{instance}: {', '.join(map(str, wish.targets))}" if wish.targets else instance
        display = Display(f"draining {what}", as_json=wait.output == "json")
        if not wait.wait:
            said = f"{what} is to be drained; `modelplane status` tells how far it is"
            display.end(said, _document(instance, wish, "asked"))
            return 0
        follower = Follower(instance, wish, goal, registry.keyspace)
        if goal is Goal.STOPPED:
            follower.unheard = unheard_before(decided_by.picture, instance)
        code = await until_done(registry, follower, display, wait.deadline)
        if code == 0:
            unheard = follower.unheard
            document = _document(instance, wish, goal) | ({"unheard": unheard} if unheard else {})
            display.end(f"{what} {goal} in {display.seconds:.1f} s", document)
            if unheard:
                sys.stderr.write(f"modelplane drain: {what}: nobody could say that nothing is in flight: {unheard}\n")
                return UNHEARD
        else:
            _not_done(display, instance, wish, what, wait, code)
        return code


def _not_done(display: Display, instance: str, wish: DrainRecord, what: str, wait: WaitConfig, code: int) -> None:
    why = "stopped waiting" if code == INTERRUPTED else f"not done after {wait.deadline:g} s"
    still = f"; still waited for: {'; '.join(display.waiting)}" if display.waiting else ""
    models = "".join(f" --model {target}" for target in wish.targets)
    back = f"the drain goes on, `modelplane undrain {instance}{models}` takes it back"
    display.end("", _document(instance, wish, "draining"))
    sys.stderr.write(f"modelplane drain: {what}: {why}{still}; {back}\n")


def _document(instance: str, wish: DrainRecord, state: str) -> dict[str, object]:
    return {"instance": instance, "models": [str(target) for target in wish.targets], "state": str(state)}


async def until_done(registry: Wishes, follower: Follower, display: Display, deadline: float) -> int:
    """Wait until the goal is reached, the deadline is over, or Ctrl-C; the exit code."""
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, interrupted.set)
    work = asyncio.create_task(registry.follow(follower, display.show))
    stop = asyncio.create_task(interrupted.wait())
    ends = loop.time() + deadline
    try:
        while not (work.done() or stop.done()) and loop.time() < ends:
            timeout = min(1.0, max(0.0, ends - loop.time()))
            done, _ = await asyncio.wait({work, stop}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                display.tick()
        if work.done():
            work.result()
            return 0
        return INTERRUPTED if stop.done() else FAILURE
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        for task in (work, stop):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({work, stop})
