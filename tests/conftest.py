"""Fixtures that start real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.etcd import Etcd


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    """A fresh, empty etcd of this test's own."""
    server = Etcd(tmp_path)
    try:
        yield server
    finally:
        server.close()
