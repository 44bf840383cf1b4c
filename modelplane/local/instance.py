"""One model server of the local stack, with its monitor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

from modelplane.local.checks import connects
from modelplane.local.models import Source, config_file
from modelplane.local.ports import any_free
from modelplane.local.processes import Program
from modelplane.local.programs import DRAIN_DEADLINE, QUIET, Shared, instance, managed_instance

STAGE = 0
"""Instances end first, while Envoy and the control plane are there to let them drain."""
_GRACE = DRAIN_DEADLINE + 12.0
"""Seconds for the drain, then for the server's own end."""


class Instance:
    """Chooses ports for each start, and gives the server its models once it listens.

    TensorFlow Serving opens its port only when all models that it is started with are loaded: one that is broken would
    keep it shut. So it is started with none and finds them in its config file, where a broken one hurts only itself.
    """

    def __init__(
        self, name: str, folder: Path, shared: Shared, server: Sequence[str], models: Iterable[Source]
    ) -> None:
        self.name = name
        self.file = folder / f"{name}.config"
        self._shared = shared
        self._server = server
        self._models = tuple(models)
        self._port = 0

    def program(self, logs: Path) -> Program:
        """As a child of the stack."""
        return Program(
            self.name,
            self._command,
            logs / f"{self.name}.log",
            stage=STAGE,
            grace=_GRACE,
            env=QUIET,
            started=self._give_models,
        )

    def _command(self) -> list[str]:
        self._write(())
        self._port = any_free()
        rest_port = any_free([self._port])
        return instance(self.name, self._shared, self._server, self._port, rest_port, self.file)

    async def _give_models(self) -> None:
        while not await connects("127.0.0.1", self._port):  # noqa: ASYNC110  another process's port sets no event of ours
            await asyncio.sleep(0.05)
        self._write(self._models)

    def _write(self, models: Iterable[Source]) -> None:
        temporary = self.file.with_suffix(".new")
        temporary.write_text(config_file(models), encoding="utf-8")
        temporary.rename(self.file)


class ManagedInstance:
    """A server that starts without models; its monitor loads what is assigned."""

    def __init__(
        self, name: str, shared: Shared, server: Sequence[str], labels: Iterable[str] = (), memory: int = 0
    ) -> None:
        self.name = name
        self._shared = shared
        self._server = server
        self._labels = tuple(labels)
        self._memory = memory

    def program(self, logs: Path) -> Program:
        """As a child of the stack."""
        log = logs / f"{self.name}.log"
        return Program(self.name, self._command, log, stage=STAGE, grace=_GRACE, env=QUIET)

    def _command(self) -> list[str]:
        port = any_free()
        ports = port, any_free([port])
        return managed_instance(self.name, self._shared, self._server, ports, self._labels, self._memory)
