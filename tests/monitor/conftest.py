"""What monitors of these tests write to, and a server for them to watch."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from registry.records import ServableState
from tests.monitor.registry_view import RegistryView
from tests.monitor.scripted_server import ScriptedServer
from tests.support.etcd import Etcd


@pytest.fixture
async def registry(etcd: Etcd) -> AsyncIterator[RegistryView]:
    async with RegistryView(etcd.endpoint) as view:
        yield view


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as scripted:
        scripted.models = {"m": {1: ServableState.AVAILABLE}}
        yield scripted
