"""`modelplane rollout history MODEL`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from modelplane.access import FleetConfig
from modelplane.commandline import CommandLine
from modelplane.errors import UserError
from modelplane.lines import block, show
from modelplane.logs import LogOptions, configure
from modelplane.policies.changing import named_model
from modelplane.policies.difference import changed_fields
from modelplane.policies.documents import write_document
from modelplane.policies.store import Held, policy_store
from registry.policy.stored import StoredPolicy, decode_stored
from registry.records import RecordError


@dataclass(frozen=True, slots=True)
class HistoryConfig:
    """What to print of it."""

    generation: int | None = field(
        default=None, metadata={"metavar": "N", "help": "print the policy of this generation instead"}
    )
    output: str = field(
        default="table",
        metadata={"short": "-o", "choices": ("table", "json", "yaml"), "help": "json, yaml: with the whole policies"},
    )


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "rollout history",
        [HistoryConfig, FleetConfig, LogOptions],
        usage="MODEL [--generation N] [options]",
        arguments={"MODEL": "its name, as clients spell it"},
        description="List the policies that a model had, the last 20 and the present one: when, by whom, which fields\n"
        "changed, why. Exit code 1 if there are none.",
        examples=("modelplane rollout history digits", "modelplane rollout history digits --generation 3"),
    )


def run(argv: Sequence[str]) -> int:
    """Print it."""
    settings = command_line().parse(argv)
    model, config = named_model(settings, "rollout history MODEL"), settings[HistoryConfig]
    configure(settings[LogOptions].logging)
    rows = _rows(asyncio.run(_read(settings[FleetConfig], model)))
    if not rows:
        raise UserError(f"model {model!r} has no policy and never had one")
    if config.generation is not None:
        rows = {generation: row for generation, row in rows.items() if generation == config.generation}
        if not rows:
            raise UserError(f"no generation {config.generation} of model {model!r} is kept")
    if config.output == "table" and config.generation is None:
        show(block(("GENERATION", "WHEN", "BY", "CHANGED", "MESSAGE"), _cells(rows))[1:], sys.stdout)
    else:
        _print(rows, config)
    return 0


async def _read(fleet: FleetConfig, model: str) -> Held:
    async with policy_store(fleet) as store:
        return await store.read(model)


def _rows(held: Held) -> dict[int, StoredPolicy | str]:
    """By generation, oldest first; a text where it can't be read."""
    raws = {**held.history, **({held.generation: held.raw} if held.raw is not None else {})}
    rows: dict[int, StoredPolicy | str] = {}
    for generation, raw in raws.items():
        try:
            rows[generation] = decode_stored(raw)
        except RecordError as error:
            rows[generation] = f"can't be read: {error}"
    return rows


def _cells(rows: dict[int, StoredPolicy | str]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = []
    before: StoredPolicy | None = None
    for generation, row in rows.items():
        if isinstance(row, str):
            cells.append((str(generation), "-", "-", "-", row))
            continue
        changed = ", ".join(changed_fields(before.document, row.document)) if before else "-"
        cells.append((str(generation), when(row.at), row.by or "-", changed or "nothing", row.message))
        before = row
    return cells


def when(at: float) -> str:
    """RFC 3339, seconds."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _print(rows: dict[int, StoredPolicy | str], config: HistoryConfig) -> None:
    documents = [_document(generation, row) for generation, row in rows.items()]
    if config.output == "json":
        whole: Any = {"history": documents} if config.generation is None else documents[0]
        sys.stdout.write(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
    elif config.output == "yaml" and config.generation is None:
        sys.stdout.write(write_document({"history": documents}))
    else:
        (document,) = documents
        if "error" in document:
            raise UserError(f"generation {config.generation} {document['error']}")
        sys.stdout.write(write_document(document["policy"]))


def _document(generation: int, row: StoredPolicy | str) -> dict[str, Any]:
    if isinstance(row, str):
        return {"generation": generation, "error": row}
    told = {"generation": generation, "at": when(row.at), "by": row.by, "message": row.message}
    return {**told, "policy": dict(row.document)}
