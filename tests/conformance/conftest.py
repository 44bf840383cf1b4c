"""Which server the suite is about: ours in a child process, or the one that the options or the environment name."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from tests.conformance.adapter import READY, Served
from tests.conformance.client import Target
from tests.support.processes import ChildProcess


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xDS conformance")
    group.addoption("--xds-server", metavar="HOST:PORT", help="the xDS server to test (or XDS_SERVER); default: ours")
    group.addoption(
        "--xds-adapter", metavar="HOST:PORT", help="its adapter, by which tests set what it has (or XDS_ADAPTER)"
    )


def _given(config: pytest.Config, option: str, variable: str) -> str | None:
    # Without this folder on pytest's command line, its options don't exist.
    return config.getoption(option, default=None) or os.environ.get(variable) or None


@pytest.fixture(scope="session")
def served(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, bool]]:
    """Where the server and its adapter are, and whether they are ours."""
    xds = _given(pytestconfig, "--xds-server", "XDS_SERVER")
    adapter = _given(pytestconfig, "--xds-adapter", "XDS_ADAPTER")
    if bool(xds) != bool(adapter):
        raise pytest.UsageError("give both --xds-server and --xds-adapter, or neither to test ours")
    if xds and adapter:
        yield Served(adapter, xds), False
        return
    log = Path(tmp_path_factory.mktemp("conformance")) / "adapter.log"
    anywhere = ["--adapter", "127.0.0.1:0", "--xds", "127.0.0.1:0"]
    with ChildProcess([sys.executable, "-m", "tests.conformance.adapter", *anywhere, "--verbose"], log) as child:
        yield _wait_for(child), True


def _wait_for(child: ChildProcess) -> Served:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and child.alive():
        if found := re.search(rf"{READY}(\S+), xDS on (\S+)\n", child.output):
            return Served(*found.groups())
        time.sleep(0.02)
    raise AssertionError(f"our server did not say where it is:\n{child.output[-4000:]}")


@pytest.fixture
async def target(served: tuple[Served, bool]) -> AsyncIterator[Target]:
    """The server, with nothing in it."""
    where, ours = served
    async with AsyncExitStack() as stack:
        adapter = await stack.enter_async_context(grpc.aio.insecure_channel(where.adapter))
        xds = await stack.enter_async_context(grpc.aio.insecure_channel(where.xds))
        target = Target(stack, adapter, xds, exact=ours)
        await target.clear()
        yield target
