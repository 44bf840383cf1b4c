"""One instance with many models: everything registered in a few transactions, and what changes is seen at once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from monitor.config import MonitorConfig
from monitor.watch import GATHERING
from registry.follow import Changes, follow
from registry.keys import ReadyKey
from registry.records import ReadyState, ServableState
from tests.monitor.registry_view import RegistryView
from tests.monitor.scripted_server import ScriptedServer
from tests.monitor.test_service import attached
from tests.support.etcd import Etcd
from tests.support.model_server import ModelServer, model_config
from tests.support.saved_models import half_plus_two
from tests.support.waiting import eventually

AVAILABLE, END = ServableState.AVAILABLE, ServableState.END
SLOWEST = 20.0
"""A test that had to wait for the slow pace would fail."""


async def _ready(registry: RegistryView, count: int) -> bool:
    found = await registry.ready()
    return len(found) == count and set(found.values()) == {ReadyState.READY}


async def test_two_hundred_models_in_few_transactions_and_gone_as_fast_as_one(etcd: Etcd, tmp_path: Path) -> None:
    names = [f"m{number:03}" for number in range(200)]
    transactions: list[Changes] = []
    async with RegistryView(etcd.endpoint) as registry, ScriptedServer() as server:

        async def watch() -> None:
            async for update in follow(registry.client, registry.keys.prefix):
                transactions.extend([update] if isinstance(update, Changes) else [])

        following = asyncio.create_task(watch())
        server.models = {name: {1: AVAILABLE} for name in names}
        config = MonitorConfig(model=tuple(names), poll_slowest=SLOWEST)
        async with attached(etcd, server.port, config):
            began = time.monotonic()
            await eventually(lambda: _ready(registry, 200), "all to be ready")
            took = time.monotonic() - began
            assert len(transactions) < 5 + took / (GATHERING * 200), "at most one in 20 ms"
            size = sum(len(value) for changes in transactions for value in changes.puts.values())
            assert size < 500_000, "no record of all of them for each of them"
            # A swap in one transaction.
            seen = len(transactions)
            server.models = {name: {2: AVAILABLE, 1: END} for name in names}
            await eventually(lambda: _ready(registry, 200), "the second versions", timeout=SLOWEST + 10)
            await _swapped(registry, transactions[seen:], names)
            await server.stop()
            began = time.monotonic()
            await eventually(lambda: _ready_or_not(registry), "nothing to be registered")
            assert time.monotonic() - began < 5.0, "its heartbeat is as fast as ever"
        following.cancel()


async def _ready_or_not(registry: RegistryView) -> bool:
    return not await registry.ready()


async def _swapped(registry: RegistryView, transactions: list[Changes], names: list[str]) -> None:
    """Wherever a model's old key goes, its new one is put with it or was READY before."""
    new: set[str] = set()
    for changes in transactions:
        keys = {raw: registry.keys.parse(raw) for raw in (*changes.puts, *changes.deletes)}
        new |= {key.model for raw, key in keys.items() if isinstance(key, ReadyKey) and raw in changes.puts}
        gone = {key.model for raw, key in keys.items() if isinstance(key, ReadyKey) and raw in changes.deletes}
        assert gone <= new


@pytest.mark.scenario
async def test_a_model_server_with_forty_models(etcd: Etcd, tmp_path: Path) -> None:
    """Waits for forty models to load (ten a second), for a new version's folder to be seen (polls of a second, while
    the slow pace is 20 s), and for a killed server's keys to go."""
    models = {f"m{number:02}": tmp_path / f"m{number:02}" for number in range(40)}
    for base in models.values():
        half_plus_two(base)
    file = tmp_path / "models.config"
    file.write_text(model_config(models))
    config = MonitorConfig(model_config_file=file, poll_slowest=SLOWEST, poll_rate=100.0)
    async with RegistryView(etcd.endpoint) as registry:
        with ModelServer(tmp_path / "server.log", f"--model_config_file={file}") as server:
            async with attached(etcd, server.port, config):
                await eventually(lambda: _ready(registry, 40), "all to be ready")
                # Until nothing makes it hurry any more.
                await asyncio.sleep(4.0)
                half_plus_two(models["m20"], 2)
                began = time.monotonic()

                async def swapped() -> bool:
                    found = await registry.ready()
                    return found.get(("m20", 2)) is ReadyState.READY and ("m20", 1) not in found

                await eventually(swapped, "the new version", timeout=SLOWEST)
                assert time.monotonic() - began < SLOWEST / 2
                server.child.kill()
                began = time.monotonic()
                await eventually(lambda: _ready_or_not(registry), "a dead server to be noticed")
                assert time.monotonic() - began < 3.0
