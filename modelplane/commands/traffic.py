"""`modelplane traffic MODEL VERSION=PARTS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelplane.access import FleetConfig
from modelplane.commandline import CommandLine
from modelplane.errors import OptionError
from modelplane.logs import LogOptions
from modelplane.policies.changing import ChangeConfig, change_one, named_model
from modelplane.policies.store import Change, Held
from registry.policy.edit import with_traffic

_USAGE = "traffic MODEL VERSION=PARTS ...|latest"


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "traffic",
        [ChangeConfig, FleetConfig, LogOptions],
        usage="MODEL VERSION=PARTS ...|latest [options]",
        arguments={"MODEL": "its name, as clients spell it"},
        rest=("VERSION=PARTS|latest", "parts of the requests that name no version; or: all follow the latest version"),
        description="Say which versions of a model answer the requests that name no version, and in which parts; or\n"
        "let them follow the latest version again. No client changes anything.",
        examples=(
            "modelplane traffic digits 3=90 4=10",
            "modelplane traffic digits latest",
        ),
    )


def run(argv: Sequence[str]) -> int:
    """Change it."""
    settings = command_line().parse(argv)
    model = named_model(settings, _USAGE)
    weights = _weights(settings.rest)

    def decide(held: Held) -> Change:
        return Change(with_traffic(held.needed().document, weights), f"traffic {' '.join(settings.rest)}")

    change_one(settings, model, decide)
    return 0


def _weights(words: Sequence[str]) -> Mapping[int, int]:
    if not words:
        raise OptionError(f"say which versions: `modelplane {_USAGE}`")
    if list(words) == ["latest"]:
        return {}
    weights: dict[int, int] = {}
    for word in words:
        version, equals, parts = word.partition("=")
        numbers = [text for text in (version, parts) if text.isascii() and text.isdigit() and len(text) < 20]
        if not equals or len(numbers) < 2:
            raise OptionError(f"{word!r}: write VERSION=PARTS such as 3=90, or `latest` alone")
        if int(version) in weights:
            raise OptionError(f"version {version} is there twice; each may be once")
        weights[int(version)] = int(parts)
    return weights
