"""`modelplane up`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from modelplane.commandline import CommandLine, Settings
from modelplane.local.config import UpConfig
from modelplane.local.folder import StateFolder
from modelplane.local.models import parse_models
from modelplane.local.up import LocalStack
from modelplane.logs import LogOptions, configure
from modelplane.options import options_of
from modelplane.screen import Screen


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "up",
        [UpConfig, LogOptions],
        description="Run a whole fleet on this machine: etcd, a control plane, Envoy, and model servers with their\n"
        "monitors. Without --model it trains and serves two small example models and asks them for a prediction.",
        examples=(
            "modelplane up",
            "modelplane up --instances 3 --model mnist=/models/mnist --model bert=/models/bert",
            "modelplane up --manage --instances 3 --instance-label tfs-0:gpu=a100",
            "modelplane up --state /tmp/second --grpc-port 0 --rest-port 0 --admin-port 0 --xds-port 0 --http-port 0",
        ),
    )


def run(argv: Sequence[str]) -> int:
    """Run until Ctrl-C or SIGTERM."""
    settings = command_line().parse(argv)
    config = settings[UpConfig]
    passed_on = _passed_on(settings)
    for option in options_of(UpConfig):
        # Meant for us: a MODELPLANE_MODEL or _GRPC_PORT that our children inherit would mean something else to them.
        os.environ.pop(option.env, None)
    models = parse_models(config.model)
    screen = Screen(sys.stdout, live=sys.stdout.isatty() and os.environ.get("TERM") != "dumb")
    with (
        StateFolder(config.state, keep=config.keep) as folder,
        (folder.logs / "up.log").open("a", encoding="utf-8") as log,
    ):
        configure(settings[LogOptions].logging, log)
        return asyncio.run(LocalStack(config, models, folder, screen, passed_on).run())


def _passed_on(settings: Settings) -> tuple[str, ...]:
    logging = settings[LogOptions].logging
    config = ("--config", os.path.abspath(settings.file)) if settings.file else ()  # noqa: PTH100  links stay links
    return ("--log-level", logging.level, "--log-format", logging.format, *config)
