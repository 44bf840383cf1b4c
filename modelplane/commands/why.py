"""`modelplane why MODEL[@VERSION|:LABEL]`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from modelplane.access import FleetConfig, located, read_fleet
from modelplane.commandline import CommandLine
from modelplane.errors import FAILURE, OptionError, UserError
from modelplane.lines import show
from modelplane.logs import LogOptions, configure
from modelplane.planes import Plane, PlaneConfig, ask_all, ask_first, resource_page
from modelplane.why.chain import Pages, explain, read_target
from modelplane.why.facts import Facts
from registry.keys import Keyspace


@dataclass(frozen=True, slots=True)
class WhyConfig:
    """How to print it."""

    output: str = field(
        default="text", metadata={"short": "-o", "choices": ("text", "json"), "help": "json: one object"}
    )


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "why",
        [WhyConfig, PlaneConfig, FleetConfig, LogOptions],
        usage="MODEL[@VERSION|:LABEL] [options]",
        arguments={"MODEL": "a model, one version of it, or a label"},
        description="Tell step by step, from the policy to the endpoints, who answers a request and why: what is\n"
        "wanted, what lies on the disks, where it is and the reason for each instance that is left out, how the\n"
        "traffic is shared, which clusters the Envoys are sent. Without a version: of the one that the rollout goes\n"
        "to, else of the one that answers. Exit code 0: a request for it is answered. 1: it is not.",
        examples=("modelplane why digits", "modelplane why digits@4", "modelplane why digits:canary -o json"),
    )


def run(argv: Sequence[str]) -> int:
    """Print it."""
    settings = command_line().parse(argv)
    text = settings.arguments.get("MODEL", "")
    if not text:
        raise OptionError("say of what: `modelplane why MODEL[@VERSION|:LABEL]`; `modelplane get models` lists them")
    configure(settings[LogOptions].logging)
    return asyncio.run(_why(settings[FleetConfig], settings[PlaneConfig], text, settings[WhyConfig].output))


async def _why(fleet: FleetConfig, config: PlaneConfig, text: str, output: str) -> int:
    facts = Facts(Keyspace(located(fleet)[0].prefix))
    await read_fleet(fleet, facts)
    target = read_target(facts, text)
    chain = explain(facts, target, await _pages(facts, config, target.model))
    if output == "json":
        sys.stdout.write(json.dumps(chain.document(), indent=2, ensure_ascii=False) + "\n")
    else:
        show(chain.lines(), sys.stdout)
    return 0 if chain.answered else FAILURE


async def _pages(facts: Facts, config: PlaneConfig, model: str) -> Pages:
    """Nobody there to be asked is one of the answers."""
    planes = [Plane(address, address) for address in config.control_plane]
    planes = planes or [Plane(name, record.http) for name, record in sorted(facts.planes.items())]
    quarantine = await ask_all(planes, "/quarantine", config.timeout)
    answering = [report.plane for report in quarantine if not report.error]
    try:
        resources = {
            one: await ask_first(answering, resource_page(one, model=model), config.timeout) for one in ("CDS", "EDS")
        }
    except UserError:
        return Pages(None, quarantine, asked=True)
    return Pages(resources, quarantine, asked=True)
