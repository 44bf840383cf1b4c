"""Fixtures that start real processes, and how random tests choose."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.etcd import Etcd
from tests.support.examples import load_profile

load_profile()


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
