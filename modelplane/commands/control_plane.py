"""`modelplane control-plane`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from control_plane.config import ControlPlaneConfig
from modelplane.commandline import CommandLine
from modelplane.logs import LogOptions, configure


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "control-plane",
        [ControlPlaneConfig, LogOptions],
        description="Watch the registry and tell every connected Envoy which instance serves which model.\n"
        "Run as many as you like: each says the same.",
        examples=(
            "modelplane control-plane --etcd 127.0.0.1:2379",
            "modelplane control-plane --etcd etcd-0:2379,etcd-1:2379,etcd-2:2379 --log-format json",
        ),
    )


def run(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    settings = command_line().parse(argv)
    configure(settings[LogOptions].logging)
    from control_plane.service import serve

    asyncio.run(serve(settings[ControlPlaneConfig]))
    return 0
