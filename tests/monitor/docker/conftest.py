"""One engine for all tests of a file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.monitor.docker.containers import View
from tests.support.docker_engine import DockerEngine, engine_or_skip
from tests.support.etcd import Etcd


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[DockerEngine]:
    with engine_or_skip() as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: DockerEngine) -> Iterator[DockerEngine]:
    yield shared_engine
    shared_engine.clear()


@pytest.fixture
async def registry(etcd: Etcd) -> AsyncIterator[View]:
    async with View(etcd.endpoint) as view:
        yield view
