"""Registry records as monitors write them: one lease per instance, readiness on it, drains that wait for Envoys."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import grpc.aio

from bench.churn.instances import HOLD
from bench.errors import BenchError
from monitor.drain import DrainWait
from registry.etcd import EtcdClient
from registry.keys import InstanceKey, Keyspace, PlaneKey, ReadyKey
from registry.leased import LeasedKeys
from registry.records import (
    InstanceRecord,
    InstanceState,
    PlaneRecord,
    ReadyRecord,
    ReadyState,
    decode_plane,
    encode_instance,
    encode_plane,
    encode_ready,
)

Servable = tuple[str, int]
_SPACE = Keyspace()


class Writer:
    """One instance and its monitor's part in the registry. What it registers, the instance holds first."""

    def __init__(self, name: str, port: int, client: EtcdClient, *, several_versions: bool = False) -> None:
        self.name, self.port = name, port
        self.several_versions = several_versions
        self._keys = LeasedKeys(client, 10.0)

    async def __aenter__(self) -> Writer:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        self._running = asyncio.create_task(self._keys.run())
        record = InstanceRecord("127.0.0.1", self.port, state=InstanceState.SERVING)
        self._keys.set({_SPACE.make(InstanceKey(self.name)): encode_instance(record)})
        await self._keys.flush()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.cancel()
        await asyncio.wait({self._running})
        await self._keys.close()
        await self._channel.close()

    async def hold(self, *servables: Servable) -> None:
        """Load: the instance answers for these from here on, but nobody knows."""
        await self._tell(add=servables)

    async def drop(self, *servables: Servable) -> None:
        """Unload: from here on a request for one of these is a failure."""
        await self._tell(drop=servables)

    def ready(self, *servables: Servable) -> None:
        """Register."""
        self._set(servables, ReadyState.READY)

    def draining(self, *servables: Servable) -> None:
        """Ask for no new requests."""
        self._set(servables, ReadyState.DRAINING)

    def gone(self, *servables: Servable) -> None:
        """Deregister."""
        self._keys.set({_SPACE.make(ReadyKey(model, version, self.name)): None for model, version in servables})

    async def flush(self) -> int:
        """The registry revision at which all of it was there."""
        return await self._keys.flush()

    async def _tell(self, **document: Iterable[Servable]) -> None:
        call: Any = self._channel.unary_unary(HOLD)
        try:
            await call(json.dumps(document).encode(), timeout=20, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise BenchError(
                f"instance {self.name} does not do as it is told: {error.code().name}, {error.details()}"
            ) from None

    def _set(self, servables: Iterable[Servable], state: ReadyState) -> None:
        record = ReadyRecord(state, "127.0.0.1", self.port, several_versions=self.several_versions)
        value = encode_ready(record)
        self._keys.set({_SPACE.make(ReadyKey(model, version, self.name)): value for model, version in servables})


class Convergence:
    """What the control planes say in the registry that their Envoys have acknowledged."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client

    async def planes(self) -> Mapping[str, PlaneRecord]:
        """Each replica's record, by name."""
        listing = await self._client.list(_SPACE.planes)
        planes = {}
        for entry in listing.entries:
            key = _SPACE.parse(entry.key)
            if isinstance(key, PlaneKey):
                planes[key.replica] = decode_plane(entry.value)
        return planes

    async def until(self, revision: int, drained: str = "", timeout: float = 240.0) -> None:
        """Wait as a monitor that drains does (its own rule), until every Envoy has acknowledged this revision and none
        of them has a request in flight for what the instance `drained` drains."""
        wait = DrainWait(drained, revision, _SPACE)
        planes: Mapping[str, PlaneRecord] = {}
        try:
            async with asyncio.timeout(timeout):
                while not planes or wait.waiting():
                    await asyncio.sleep(0.02)
                    before, planes = planes, await self.planes()
                    if not drained:
                        # Nobody is asked what is in flight: as if nothing were.
                        planes = {name: replace(plane, draining={"": 0}) for name, plane in planes.items()}
                    puts = {_key(name): encode_plane(plane) for name, plane in planes.items()}
                    wait.apply(puts, map(_key, before.keys() - planes.keys()), time.monotonic())
                    wait.give_up(time.monotonic())
        except TimeoutError:
            raise AssertionError(f"{timeout:.0f} s for revision {revision}; {'; '.join(wait.waiting())}") from None


def _key(replica: str) -> str:
    return _SPACE.make(PlaneKey(replica))
