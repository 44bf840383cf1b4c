"""The one folder that holds all state of a local stack. Invariant: one stack at a time uses it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TextIO

from modelplane.errors import UserError

_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Stack:
    """How to reach a running stack, for `modelplane status`."""

    etcd: str
    prefix: str
    pid: int


class StateFolder:
    """A context manager that holds the folder's lock; leaving it leaves logs and models where they are."""

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        # Not pathlib's, which raise for a loop of links and an unknown ~USER: __enter__ reports what can't be used.
        self.path = Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111
        self._keep = keep
        self._lock: TextIO | None = None

    @property
    def logs(self) -> Path:
        """One log per child."""
        return self.path / "logs"

    @property
    def models(self) -> Path:
        """The example models: NAME/VERSION."""
        return self.path / "models"

    @property
    def policies(self) -> Path:
        """A policy for each model, to begin with."""
        return self.path / "policies"

    @property
    def etcd(self) -> Path:
        """etcd's data."""
        return self.path / "etcd"

    @property
    def instances(self) -> Path:
        """What each model server is started with."""
        return self.path / "instances"

    def __enter__(self) -> StateFolder:
        """Make and lock the folder, and clear what the last run left. Raises UserError, also for a folder with files of
        others in it: clearing could take a `logs` of theirs along."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_ours()
            self._lock = (self.path / _LOCK).open("a+", encoding="utf-8")
            self._take()
            self._clear()
        except OSError as error:
            raise UserError(f"can't use {self.path}: {error.strerror}; choose another folder with --state") from None
        return self

    def _check_ours(self) -> None:
        held = {child.name for child in self.path.iterdir()}
        if _LOCK not in held and held - {self.models.name}:
            raise UserError(
                f"{self.path} holds files that are not of `modelplane up`; choose an empty or a new folder with --state"
            )

    def _take(self) -> None:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            pid = self._lock.read().strip()
            self._lock.close()
            raise UserError(
                f"{self.path} is in use by another `modelplane up`{f' (pid {pid})' if pid else ''}; "
                "end that one, or choose another folder with --state"
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def _clear(self) -> None:
        for folder in (self.logs, self.instances, *(() if self._keep else (self.etcd,))):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.logs, self.instances, self.models):
            folder.mkdir(parents=True, exist_ok=True)
        for half in self.models.glob(".building-*"):
            shutil.rmtree(half, ignore_errors=True)
        # State in the middle of somebody's repository is nothing to commit.
        (self.path / ".gitignore").write_text("*\n")

    def announce(self, stack: Stack) -> None:
        """Let `modelplane status` find the stack."""
        temporary = self.path / ".stack.json"
        temporary.write_text(json.dumps(asdict(stack)) + "\n")
        temporary.rename(self.path / "stack.json")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self.path / "stack.json").unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()


def running_stack(path: Path) -> Stack | None:
    """The stack that was announced in a folder; None if there is none."""
    try:
        return Stack(**json.loads((StateFolder(path).path / "stack.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
