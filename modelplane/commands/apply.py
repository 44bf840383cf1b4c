"""`modelplane apply -f FILE`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from modelplane.access import FleetConfig
from modelplane.commandline import CommandLine
from modelplane.errors import CONFLICT, DIFFERENT, FAILURE, ConflictError, OptionError, UserError
from modelplane.logs import LogOptions, configure
from modelplane.policies.changing import ChangeConfig
from modelplane.policies.difference import unified
from modelplane.policies.files import Wanted, read_files
from modelplane.policies.store import Change, Done, PolicyStore, Result, policy_store
from modelplane.policies.waiting import FOR_PLANE, Rollouts, Verdict, follow_rollouts
from modelplane.table import clean
from modelplane.who import operator


@dataclass(frozen=True, slots=True)
class ApplyConfig:
    """What to apply."""

    file: tuple[str, ...] = field(
        default=(),
        metadata={
            "short": "-f",
            "separator": None,
            "metavar": "FILE|DIR|-",
            "help": "policies, YAML or JSON, several to a file; of a folder, its .yaml, .yml and .json; repeatable",
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "say what would be done, and write nothing"})
    diff: bool = field(
        default=False, metadata={"help": "show what would change, and write nothing; exit code 5 if anything would"}
    )
    wait_done: bool = field(
        default=False, metadata={"flag": "--wait", "key": "apply-wait", "help": "until the rollouts have ended"}
    )
    deadline: float = field(default=600.0, metadata={"metavar": "SECONDS", "help": "how long --wait waits"})
    output: str = field(
        default="text",
        metadata={"short": "-o", "choices": ("text", "json"), "help": "json: one object for each model"},
    )

    def __post_init__(self) -> None:
        if not 0 < self.deadline < float("inf"):
            raise ValueError(f"--deadline: {self.deadline} is not possible; give more than 0 seconds")
        if self.wait_done and (self.dry_run or self.diff):
            raise ValueError("--wait: nothing is written with --dry-run and --diff, so there is nothing to wait for")


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "apply",
        [ApplyConfig, ChangeConfig, FleetConfig, LogOptions],
        usage="-f FILE|DIR|- [options]",
        description="Make the policies of models what files say. All files are read first: if anything in them is\n"
        "wrong, every problem is told with its line, and nothing is written. docs/policy.md explains the fields.\n"
        "Exit code 0: done. 1: refused, or with --wait a rollout that failed, was rolled back or did not end in\n"
        "time. 2: wrong usage. 3: --if-generation did not hold. 5: --diff found differences.",
        examples=(
            "modelplane apply -f digits.yaml --message 'version 4 is out'",
            "modelplane apply -f policies/ --diff",
            "modelplane get models digits -o yaml | sed s/2s/3s/ | modelplane apply -f - --wait",
        ),
    )


def run(argv: Sequence[str]) -> int:
    """Apply them."""
    settings = command_line().parse(argv)
    config, change = settings[ApplyConfig], settings[ChangeConfig]
    if not config.file:
        raise OptionError("say what to apply: `modelplane apply -f FILE`; - is the standard input")
    configure(settings[LogOptions].logging)
    wanted = read_files(config.file)
    if change.if_generation is not None and len(wanted) > 1:
        raise OptionError("--if-generation is for one policy, but there are several")
    return asyncio.run(_apply(settings[FleetConfig], config, change, wanted))


async def _apply(fleet: FleetConfig, config: ApplyConfig, change: ChangeConfig, wanted: Sequence[Wanted]) -> int:
    async with policy_store(fleet, operator(), change.message) as store:
        results: list[Result] = []
        failed: list[UserError] = []
        for one in wanted:
            try:
                result = await _one(store, one, change, dry_run=config.dry_run or config.diff)
            except ConflictError as error:
                failed.append(error)
                sys.stderr.write(f"modelplane apply: {one.where}: {error}\n")
            else:
                results.append(result)
                _tell(result, config)
        if failed:
            return CONFLICT
        if config.diff:
            return DIFFERENT if any(result.done is not Done.UNCHANGED for result in results) else 0
        return await _wait(store, config, wanted, results) if config.wait_done else 0


async def _one(store: PolicyStore, one: Wanted, change: ChangeConfig, *, dry_run: bool) -> Result:
    # Computed from the file alone, so it holds whatever was there a moment ago.
    return await store.change(
        one.policy.name,
        lambda held: Change(one.document, "applied"),
        if_generation=change.if_generation,
        dry_run=dry_run,
    )


def _tell(result: Result, config: ApplyConfig) -> None:
    if config.output == "json":
        document = {"model": result.model, "result": result.done, "generation": result.generation}
        sys.stdout.write(json.dumps({**document, "dryRun": config.dry_run or config.diff}, ensure_ascii=False) + "\n")
    elif config.diff:
        before = result.before.stored.document if result.before.stored else None
        if result.done is not Done.UNCHANGED:
            sys.stdout.write("".join(f"{line}\n" for line in unified(result.model, before, result.document)))
    else:
        dry = " (dry run)" if config.dry_run else ""
        sys.stdout.write(f"model {clean(result.model)}: {result.done}, generation {result.generation}{dry}\n")
    sys.stdout.flush()


async def _wait(store: PolicyStore, config: ApplyConfig, wanted: Sequence[Wanted], results: Sequence[Result]) -> int:
    routed = frozenset(one.policy.name for one in wanted if not one.policy.base_path)
    rollouts = Rollouts(store.keyspace, {result.model: result.generation for result in results}, routed)
    said: dict[str, str] = {}

    def show() -> None:
        for model in rollouts.wanted:
            _, text = rollouts.verdict(model)
            if said.get(model) != text:
                said[model] = text
                sys.stderr.write(f"model {clean(model)}: {clean(text)}\n")

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(config.deadline):
            await follow_rollouts(store.client, rollouts, show)
    verdicts = [rollouts.verdict(model)[0] for model in rollouts.wanted]
    if Verdict.WAITING in verdicts:
        then = "the rollout goes on" if rollouts.planes else f"{FOR_PLANE}; it will carry out what was applied"
        sys.stderr.write(f"modelplane apply: not ended after {config.deadline:g} s; {then}\n")
    return 0 if all(verdict is Verdict.DONE for verdict in verdicts) else FAILURE
