"""`modelplane monitor [options] -- COMMAND…`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from modelplane.commandline import CommandLine
from modelplane.logs import LogOptions, configure
from monitor.config import MonitorConfig
from monitor.docker.config import DockerConfig
from monitor.errors import MonitorError


def command_line() -> CommandLine:
    """The flags."""
    return CommandLine(
        "monitor",
        [MonitorConfig, DockerConfig, LogOptions],
        usage="[options] [-- COMMAND …]",
        description="Register what one model server really answers, and let no request die when it stops.\n"
        "After -- stands the server to start and own; without it, the one at --target is watched, or with --docker\n"
        "those in the containers of this host.\n"
        "Exit codes: 0 after SIGTERM or Ctrl-C; the server's own if it ended by itself; 4 if a newer monitor has\n"
        "claimed this instance.",
        examples=(
            "modelplane monitor -- tensorflow_model_server --port=8500 --model_config_file=/models.config",
            "modelplane monitor --target 127.0.0.1:8500 --model mnist --etcd etcd-0:2379",
            "modelplane monitor --docker --etcd etcd-0:2379",
        ),
    )


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, and the command after the first `--`, untouched."""
    arguments = list(argv)
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def run(argv: Sequence[str]) -> int:
    """Watch until SIGTERM or Ctrl-C; with a command, its exit code."""
    own, command = split_command(argv)
    settings = command_line().parse(own)
    configure(settings[LogOptions].logging)
    if settings[DockerConfig].docker:
        if command:
            raise MonitorError(
                "-- COMMAND starts one server, and --docker watches those of containers: give one of them"
            )
        from monitor.docker.service import run as watch_host

        return asyncio.run(watch_host(settings[MonitorConfig], settings[DockerConfig]))
    from monitor.service import run as watch

    return asyncio.run(watch(settings[MonitorConfig], command))
