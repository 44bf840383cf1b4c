"""What one container asks for: its labels first, then what its command and environment say of the server. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath

from monitor.consent import own_models
from monitor.docker.container import Container
from monitor.docker.refusal import Reason, Refused
from monitor.errors import MonitorError
from monitor.memory import parse_memory
from monitor.servables import WatchedModel
from monitor.server_flags import IMAGE_ENTRYPOINT, ServerFlags, read_flags

PREFIX = "modelplane."
ENABLE, INSTANCE = "modelplane.enable", "modelplane.instance"
GRPC_PORT, REST_PORT, MODELS = "modelplane.grpc-port", "modelplane.rest-port", "modelplane.models"
ZONE, CAPACITY = "modelplane.zone", "modelplane.capacity"
MANAGE, MEMORY, LABEL = "modelplane.manage", "modelplane.memory", "modelplane.label."
LABELS = (ENABLE, INSTANCE, GRPC_PORT, REST_PORT, MODELS, ZONE, CAPACITY, MANAGE, MEMORY)

_IMAGE = re.compile(r"(?:^|/)tensorflow/serving(?:[:@]|$)")
_SERVER = "tensorflow_model_server"
_SHELLS = ("sh", "bash", "dash", "ash")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Wishes:
    """`config_file` is a path inside the container; `unknown` are labels that look like ours and are not. `managed`:
    the flags of a server that is to be managed, None: it is not; `labels`: NAME=VALUE; `memory`: bytes for models."""

    port: int
    rest_port: int
    models: tuple[WatchedModel, ...]
    config_file: str
    zone: str
    capacity: int
    instance: str
    unknown: tuple[str, ...]
    managed: ServerFlags | None = None
    labels: tuple[str, ...] = ()
    memory: int = 0


def check_enabled(container: Container) -> None:
    """Raise Refused for a container that is none of ours."""
    enabled = _truth(container.labels, ENABLE)
    if enabled is False:
        raise Refused(Reason.DISABLED, f"its label {ENABLE} is false")
    if enabled is None and not _IMAGE.search(container.image):
        others = sorted(name for name in container.labels if name.startswith(PREFIX))
        if others:
            raise Refused(Reason.DISABLED, f"it has {', '.join(others)}, but not {ENABLE}=true")
        raise Refused(Reason.NOT_ENABLED, f"no label {ENABLE}=true, and its image is not tensorflow/serving")


def runs_monitor(container: Container) -> bool:
    """Whether its command is a monitor of ours, beside a server or as its parent."""
    before = container.command[: container.command.index("--")] if "--" in container.command else container.command
    words = [PurePath(word).name for word in before]
    return ("modelplane", "monitor") in pairwise(words)


def read_wishes(container: Container) -> Wishes:
    """Raises Refused for labels that can't be read, and if no model is named."""
    labels = container.labels
    try:
        flags = read_flags(server_command(container.command), container.environment)
    except (MonitorError, ValueError) as error:
        raise Refused(Reason.NO_MODELS, f"its command can't be understood: {error}") from None
    models = tuple(_models(labels.get(MODELS, "")))
    config_file = "" if models else flags.model_config_file
    if not models and not config_file:
        models = _from_command(flags, container.environment)
    if not models and not config_file:
        text = "neither its command nor its environment names a model"
        raise Refused(Reason.NO_MODELS, f"{text}; add the label {MODELS}=NAME")
    managed = flags if _truth(labels, MANAGE) else None
    if managed is not None:
        try:
            own_models(managed, None)
        except MonitorError as error:
            raise Refused(Reason.BAD_LABEL, f"{MANAGE}: {error}") from None
    return Wishes(
        port=_port(labels, GRPC_PORT, 1, flags.port),
        rest_port=_port(labels, REST_PORT, 0, flags.rest_api_port),
        models=models,
        config_file=config_file,
        zone=labels.get(ZONE, ""),
        capacity=_number(labels, CAPACITY, 1, 1_000_000, 1),
        instance=labels.get(INSTANCE, ""),
        unknown=tuple(sorted(name for name in labels if name.startswith(PREFIX) and not _known(name))),
        managed=managed,
        labels=tuple(
            f"{name[len(LABEL) :]}={value}" for name, value in sorted(labels.items()) if name.startswith(LABEL)
        ),
        memory=_memory(container),
    )


def _known(label: str) -> bool:
    return label in LABELS or (label.startswith(LABEL) and label != LABEL)


def _memory(container: Container) -> int:
    text = container.labels.get(MEMORY)
    try:
        return parse_memory(text) if text is not None else container.memory
    except ValueError as error:
        raise Refused(Reason.BAD_LABEL, f"{MEMORY}={error}") from None


def server_command(command: Sequence[str]) -> tuple[str, ...]:
    """The part of a container's command that starts with the server, also where a shell or a wrapper is before it; all
    of it if no server is known in it. Raises ValueError for a shell's text with an open quote."""
    for at, word in enumerate(command):
        if PurePath(word).name in (_SERVER, IMAGE_ENTRYPOINT):
            return tuple(command[at:])
    if len(command) > 2 and PurePath(command[0]).name in _SHELLS and command[1].endswith("c"):
        return server_command(shlex.split(command[2]))
    return tuple(command)


def _models(text: str) -> Sequence[WatchedModel]:
    models = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, base_path = part.partition("=")
        if not name:
            raise Refused(Reason.BAD_LABEL, f"{MODELS}={text!r}: a name is empty; write NAME[=BASE_PATH],…")
        models.append(WatchedModel(name, base_path))
    return models


def _from_command(flags: ServerFlags, environment: Mapping[str, str]) -> tuple[WatchedModel, ...]:
    # The base path is a folder of the container, which this process can't look into: not told to anybody.
    if flags.model_base_path:
        return (WatchedModel(flags.model_name, several_versions=False),)
    named = environment.get("MODEL_NAME")
    return (WatchedModel(named),) if named else ()


def _truth(labels: Mapping[str, str], name: str) -> bool | None:
    text = labels.get(name)
    if text is None:
        return None
    if text.lower() not in _TRUE + _FALSE:
        raise Refused(Reason.BAD_LABEL, f"{name}={text!r} is neither true nor false")
    return text.lower() in _TRUE


def _port(labels: Mapping[str, str], name: str, low: int, default: int) -> int:
    return _number(labels, name, low, 65535, default)


def _number(labels: Mapping[str, str], name: str, low: int, high: int, default: int) -> int:
    text = labels.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise Refused(Reason.BAD_LABEL, f"{name}={text!r} is not a whole number between {low} and {high}")
    return int(text)
