"""A model config file inside a container. Invariant: what is known of it stays known while the engine is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from monitor.docker.engine import EngineError
from monitor.model_config import ModelConfigFile, parse_model_config

PAUSE = 5.0
"""Seconds between two looks: each makes the engine pack the file into an archive."""


class ContainerConfigFile(ModelConfigFile):
    """`read` brings the file's bytes; it blocks, and so does `refresh`."""

    def __init__(self, path: str, read: Callable[[], bytes]) -> None:
        super().__init__(Path(path))
        self._read = read
        self._content: bytes | None = None
        self._next = 0.0

    def refresh(self) -> bool:
        """Read it again if it is time; whether `models` or `trouble` changed."""
        if time.monotonic() < self._next:
            return False
        before = self.models, self.trouble
        try:
            content = self._read()
            if content != self._content:
                self._content = content
                if not content:
                    raise ValueError("it is empty")
                text = content.decode()
                self.models, self.trouble, self.text = parse_model_config(text), "", text
        except EngineError as error:
            if self._content is None:
                self.trouble = f"model config file {self.path} in the container: the engine does not show it: {error}"
        except (OSError, ValueError) as error:
            self._content = None
            self.trouble = f"model config file {self.path} in the container: {error}"
        self._next = time.monotonic() + PAUSE
        return (self.models, self.trouble) != before
