"""How log lines look: one line per event on stderr, for people or for machines."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

_COLOURS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31;1", logging.DEBUG: "2"}


@dataclass(frozen=True, slots=True)
class LogFormat:
    """What is logged, and how."""

    level: str = field(
        default="info",
        metadata={
            "flag": "--log-level",
            "choices": ("debug", "info", "warning", "error"),
            "help": "the least important kind of event that is logged",
        },
    )
    format: str = field(
        default="text",
        metadata={
            "flag": "--log-format",
            "choices": ("text", "json"),
            "help": "json: one object per line, with time, level, logger and message",
        },
    )


@dataclass(frozen=True, slots=True)
class LogOptions:
    """The group of flags that every command has."""

    logging: LogFormat = field(default_factory=LogFormat)


def _time(created: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created)) + f".{int(created % 1 * 1000):03d}Z"


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO    monitor.service  model digits version 2 on tfs-0: ready`."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """One line, but for a traceback, which follows it."""
        level = f"{record.levelname:<7}"
        if self._colour and record.levelno in _COLOURS:
            level = f"\x1b[{_COLOURS[record.levelno]}m{level}\x1b[0m"
        message = record.getMessage().replace("\n", "\\n")
        line = f"{_time(record.created)} {level} {record.name}  {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The event, its traceback (if any) as one string."""
        event = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


def colours_wanted(stream: TextIO) -> bool:
    """Whether a stream is a terminal whose owner hasn't asked for no colours (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def configure(options: LogFormat, stream: TextIO | None = None) -> None:
    """Send all logs to `stream` (default stderr), replacing whatever was configured before."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if options.format == "json" else TextFormatter(colour=colours_wanted(stream)))
    logging.basicConfig(level=options.level.upper(), handlers=[handler], force=True)
