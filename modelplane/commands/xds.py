"""`modelplane xds dump [TYPE [NAME]]`."""

from __future__ import annotations

import asyncio
import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from modelplane.access import FleetConfig
from modelplane.commandline import CommandLine
from modelplane.errors import OptionError, UserError
from modelplane.logs import LogOptions, configure
from modelplane.planes import Plane, PlaneConfig, PlaneError, ask_first, copy, find_planes, resource_page

_SPELLINGS = {
    "LDS": ("listener", "listeners"),
    "RDS": ("route", "routes", "routeconfiguration"),
    "CDS": ("cluster", "clusters"),
    "EDS": ("endpoint", "endpoints", "clusterloadassignment"),
    "ECDS": ("extension", "extensions", "typedextensionconfig"),
}


@dataclass(frozen=True, slots=True)
class DumpConfig:
    """How to print it."""

    output: str = field(
        default="json",
        metadata={
            "short": "-o",
            "choices": ("json", "names"),
            "help": "json: what an Envoy is sent, a resource a line, and one that is named indented; names: just those",
        },
    )
    view: str = field(
        default="envoy",
        metadata={
            "metavar": "VIEW",
            "help": "envoy: what Envoys are sent; grpc: what gRPC clients without a proxy are, as far as one has asked",
        },
    )
    # Not --model, whose environment variable a monitor beside us may be told by.
    of_model: str = field(default="", metadata={"metavar": "MODEL", "help": "only what belongs to this model"})


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "xds",
        [DumpConfig, PlaneConfig, FleetConfig, LogOptions],
        usage="dump [TYPE [NAME]] [options]",
        arguments={
            "dump": "print resources",
            "TYPE": "LDS, RDS, CDS, EDS or ECDS (or listeners, routes, clusters, endpoints, extensions); default all",
            "NAME": "of one resource",
        },
        description="Print the xDS resources that a control plane holds, as JSON with protobuf's field names.\n"
        "All control planes hold the same at one registry revision; the first that answers is asked.",
        examples=(
            "modelplane xds dump CDS -o names",
            "modelplane xds dump EDS digits@2",
            "modelplane xds dump endpoints --of-model digits | jq '.resources[].resource.endpoints'",
            "modelplane xds dump --control-plane plane-1:18080 > plane-1.json",
        ),
    )


def run(argv: Sequence[str]) -> int:
    """Print the resources."""
    settings = command_line().parse(argv)
    verb, wanted, name = (settings.arguments.get(key, "") for key in ("dump", "TYPE", "NAME"))
    if verb != "dump":
        raise OptionError(f"{f'no such thing as `xds {verb}`' if verb else 'say what to do'}: `modelplane xds dump`")
    type_name = _type(wanted) if wanted else ""
    configure(settings[LogOptions].logging)
    asyncio.run(_dump(settings[FleetConfig], settings[PlaneConfig], settings[DumpConfig], type_name, name))
    return 0


def _type(text: str) -> str:
    plain = text.rpartition(".")[2].lower()
    for type_name, spellings in _SPELLINGS.items():
        if plain == type_name.lower() or plain in spellings:
            return type_name
    known = [*map(str.lower, _SPELLINGS), *(spelling for each in _SPELLINGS.values() for spelling in each)]
    close = difflib.get_close_matches(plain, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_SPELLINGS)}"
    raise OptionError(f"no resource type {text!r}; {hint}")


async def _dump(fleet: FleetConfig, planes: PlaneConfig, config: DumpConfig, type_name: str, name: str) -> None:
    found = await find_planes(fleet, planes)
    query = {"view": config.view, **({"model": config.of_model} if config.of_model else {})}
    if name:
        page = await ask_first(found, resource_page(type_name, name, **query), planes.timeout)
        text = json.dumps(page.page, indent=2, ensure_ascii=False) if config.output == "json" else page.page["name"]
        sys.stdout.write(f"{text}\n")
        return
    types = [type_name] if type_name else list(_SPELLINGS)
    if config.output == "names":
        for one in types:
            page = await ask_first(found, resource_page(one, **query, contents="0"), planes.timeout)
            lead = "" if type_name else f"{one} "
            sys.stdout.writelines(f"{lead}{resource['name']}\n" for resource in page.page["resources"])
        return
    # The first that answers is asked for all of it, so that one replica has told the whole.
    answering = (await ask_first(found, resource_page(view=config.view), planes.timeout)).plane
    await _print(answering, [(one, resource_page(one, **query)) for one in types], planes.timeout, whole=not type_name)


async def _print(plane: Plane, pages: Sequence[tuple[str, str]], timeout: float, *, whole: bool) -> None:
    """Copy pages to stdout while they are made: a large fleet's are longer than what should be held."""

    def write(chunk: bytes) -> None:
        # Not through sys.stdout's text layer, where a chunk could end within a character.
        sys.stdout.flush()
        sys.stdout.buffer.write(chunk)

    try:
        for number, (type_name, page) in enumerate(pages):
            if whole:
                write(b'%s"%s": ' % (b"," if number else b"{", type_name.encode()))
            await copy(plane, page, timeout, write)
        if whole:
            write(b"}\n")
    except PlaneError as error:
        raise UserError(f"{plane}: {error}") from None
