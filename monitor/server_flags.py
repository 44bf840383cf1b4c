"""Reads what a monitor has to know out of the command that starts a model server. Pure.

The flags and defaults are those of TensorFlow Serving's main.cc (2.16). `--x=y` and `--x y` both count, the last one
wins, and flags that mean nothing to a monitor are passed over. The tensorflow/serving image's own entrypoint script
adds flags before the user's, built from MODEL_NAME and MODEL_BASE_PATH; it is known by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from monitor.errors import MonitorError

IMAGE_ENTRYPOINT = "tf_serving_entrypoint.sh"
_TEXTS = ("model_name", "model_base_path", "model_config_file")
_PORTS = ("port", "rest_api_port")
_NUMBERS = {
    "file_system_poll_wait_seconds": "poll_wait",
    "model_config_file_poll_wait_seconds": "config_poll_wait",
    "max_num_load_retries": "load_retries",
    "num_load_threads": "load_threads",
    "load_retry_interval_micros": "load_retry_micros",
}
_LABELS = "allow_version_labels_for_unavailable_models"


@dataclass(frozen=True, slots=True)
class ServerFlags:
    """As the server will see them. `model_config_file` set: the server ignores name and base path."""

    port: int = 8500
    rest_api_port: int = 0
    model_name: str = "default"
    model_base_path: str = ""
    model_config_file: str = ""
    poll_wait: int = 1
    config_poll_wait: int = 0
    load_retries: int = 5
    load_retry_micros: int = 60_000_000
    load_threads: int = 0
    labels_for_unavailable: bool = False


def read_flags(command: Sequence[str], environment: Mapping[str, str]) -> ServerFlags:
    """The flags of a server's command line. Raises MonitorError for a port that is none."""
    arguments = list(command[1:])
    if command and PurePath(command[0]).name == IMAGE_ENTRYPOINT:
        name = environment.get("MODEL_NAME") or "model"
        folder = environment.get("MODEL_BASE_PATH") or "/models"
        image = ("--port=8500", "--rest_api_port=8501", f"--model_name={name}", f"--model_base_path={folder}/{name}")
        arguments = [*image, *arguments]
    found: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name not in (*_TEXTS, *_PORTS, *_NUMBERS, _LABELS):
            continue
        if not equals and name != _LABELS:
            value = arguments[position + 1] if position + 1 < len(arguments) else ""
        found[name] = value
    flags = ServerFlags()
    return ServerFlags(
        port=_port("port", found.get("port"), flags.port),
        rest_api_port=_port("rest_api_port", found.get("rest_api_port"), flags.rest_api_port),
        model_name=found.get("model_name", flags.model_name),
        model_base_path=found.get("model_base_path", ""),
        model_config_file=found.get("model_config_file", ""),
        labels_for_unavailable=found.get(_LABELS, "false") in ("", "true", "True", "1"),
        **{field: int(found[flag]) for flag, field in _NUMBERS.items() if _is_number(found.get(flag, ""))},
    )


def named_flags(command: Sequence[str]) -> frozenset[str]:
    """The names of all flags that a command gives, whatever they are."""
    return frozenset(one.lstrip("-").partition("=")[0] for one in command[1:] if one.startswith("-"))


def _is_number(text: str) -> bool:
    # One that is none is the server's to refuse.
    return text.isascii() and text.removeprefix("-").isdigit()


def _port(flag: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    low = 0 if flag == "rest_api_port" else 1
    if not (text.isascii() and text.isdigit() and low <= int(text) <= 65535):
        raise MonitorError(f"the server's --{flag} {text!r} is not a TCP port ({low} to 65535)")
    return int(text)
