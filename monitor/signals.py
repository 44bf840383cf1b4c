"""Stop signals. Invariant: the first one asks for a drain, the second hastens it, the third kills what is owned."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

# SIGHUP: a terminal that closes; the owned server, in a process group of its own, would be left behind.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopOrders:
    """How one instance's monitor is told to end: `stop` asks for a drain, `hasten` for no more waiting."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hasten = asyncio.Event()


class StopSignals(StopOrders):
    """Orders given by SIGTERM, SIGINT (Ctrl-C) or SIGHUP: three events, set one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.kill = asyncio.Event()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals over, and give them back at the end."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._received, number)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _received(self, number: signal.Signals) -> None:
        for event in (self.stop, self.hasten, self.kill):
            if not event.is_set():
                log.info("%s received", number.name)
                event.set()
                return
