"""Asking the event loop from another thread. Invariant: what the loop owns is read on the loop, and whoever asks waits
for a bounded time."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class LoopBusyError(Exception):
    """The event loop did not answer in time."""


class Ask(Protocol):
    """Calls a function where it may read the control plane's state, and gives its value. Raises LoopBusyError."""

    def __call__(self, read: Callable[[], T], /) -> T:
        """The value of `read()`."""


class LoopGate:
    """An `Ask` for threads. To be made on the loop; `seconds` bound each question."""

    def __init__(self, seconds: float = 2.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds

    def __call__(self, read: Callable[[], T], /) -> T:
        """The value of `read()`, called on the loop; what it raises is raised here. Raises LoopBusyError."""
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

        def call() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(read())
            except Exception as error:  # noqa: BLE001 - raised where it was asked
                answer.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(call)
            return answer.result(self._seconds)
        except TimeoutError:
            answer.cancel()
            raise LoopBusyError(f"the event loop has not answered for {self._seconds:g} s") from None
        except RuntimeError as error:  # the loop is closed
            raise LoopBusyError(str(error)) from None
