"""Fixtures that start real processes, and how random tests choose."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.etcd import Etcd
from tests.support.examples import load_profile

load_profile()


_LONG = ("scenarios", "modelplane", "monitor", "registry", "examples")
"""Folders whose files take long: begun with, so that what is left at the end fills all workers evenly."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folders = {item: item.path.relative_to(Path(__file__).parent).parts[0] for item in items}
    items.sort(key=lambda item: _LONG.index(folders[item]) if folders[item] in _LONG else len(_LONG))


class _NoFalseAlarm(logging.Filter):
    """gRPC wakes all loops of a process, and those for which there is nothing log that (grpc/grpc#25364).
    A test's process may have several, a program of ours has one."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not (isinstance(error, BlockingIOError) and "PollerCompletionQueue" in record.getMessage())


def pytest_configure() -> None:
    logging.getLogger("asyncio").addFilter(_NoFalseAlarm())
    # A run that is ended cleans up as one that is interrupted.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # A shell's background job ignores SIGINT, and so would every process that a test starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A command that runs inside the test process sets up logging to a stream that pytest closes after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    """A fresh, empty etcd of this test's own."""
    server = Etcd(tmp_path)
    try:
        yield server
    finally:
        server.close()
