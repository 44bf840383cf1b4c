"""Stacks of real processes: etcd, control plane, Envoy, and model servers with their monitors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import Stack


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A control plane and an Envoy, and no instance yet; everything is ended after the test."""
    stack = Stack(tmp_path)
    try:
        yield stack
    finally:
        stack.close()
