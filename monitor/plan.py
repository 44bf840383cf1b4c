"""What a monitor is to do: its configuration, the server's command and the environment, brought together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from monitor.config import MonitorConfig
from monitor.errors import MonitorError
from monitor.servables import Policy, WatchedModel
from monitor.server_flags import ServerFlags, read_flags
from registry.addresses import split_address


@dataclass(frozen=True, slots=True)
class Plan:
    """`models` are those that need no file to be known; the server's config file may name more."""

    host: str
    port: int
    rest_port: int
    models: tuple[WatchedModel, ...]
    config_file: Path | None
    flags: ServerFlags | None = None
    """The server's own, where its command is known."""


def make_plan(config: MonitorConfig, command: Sequence[str], environment: Mapping[str, str]) -> Plan:
    """Decide what is watched and where. Raises MonitorError if there is nothing to watch."""
    if not config.target and not command:
        raise MonitorError(
            "nothing to watch: give --target HOST:PORT for a server that runs, -- COMMAND to start and own one, "
            "or --docker for those in containers"
        )
    flags = read_flags(command, environment) if command else None
    if config.target:
        host, port = split_address(config.target)
    else:
        host, port = "127.0.0.1", (flags or ServerFlags()).port
    config_file = config.model_config_file
    if config_file is None and flags and flags.model_config_file:
        config_file = Path(flags.model_config_file)
    models = _models(config, flags, environment, has_file=config_file is not None)
    if not models and config_file is None and not config.manage:
        raise MonitorError(
            "no model to watch: name each with --model NAME, or give the server's file with --model-config-file FILE; "
            "or let modelplane load them, with --manage"
        )
    rest_port = config.rest_port or (flags.rest_api_port if flags else 0)
    return Plan(host, port, rest_port, models, config_file, flags)


def _models(
    config: MonitorConfig, flags: ServerFlags | None, environment: Mapping[str, str], *, has_file: bool
) -> tuple[WatchedModel, ...]:
    models: dict[str, WatchedModel] = {}
    for text in config.model:
        name, _, base_path = text.partition("=")
        models[name] = WatchedModel(name, base_path)
    if flags and flags.model_base_path and not flags.model_config_file:
        # main.cc: a model named by flags has the default policy, the latest version alone.
        policy = Policy(latest=1)
        models[flags.model_name] = WatchedModel(flags.model_name, flags.model_base_path, policy.several, policy)
    named = environment.get("MODEL_NAME")
    if named and not models and not has_file:
        folder = environment.get("MODEL_BASE_PATH")
        models[named] = WatchedModel(named, f"{folder}/{named}" if folder else "")
    return tuple(models.values())
