"""Instances that are echo upstreams, registered by hand, in a fleet with a control plane and an Envoy."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import InstanceKey, Keyspace, ReadyKey
from registry.records import InstanceRecord, ReadyRecord, ReadyState, encode_instance, encode_ready
from tests.support.echo import EchoServer
from tests.support.proxyless import ProxylessClient
from tests.support.stack import Stack
from tests.support.waiting import eventually

SPACE = Keyspace()


class Registered:
    """Upstreams and what is registered of them."""

    def __init__(self, stack: Stack, etcd: EtcdClient) -> None:
        self.stack, self.etcd = stack, etcd
        self.upstreams: dict[str, EchoServer] = {}

    async def register(
        self,
        instance: str,
        version: int,
        *,
        capacity: int = 1,
        zone: str = "",
        state: ReadyState = ReadyState.READY,
        model: str = "m",
    ) -> int:
        """The revision."""
        port = self.upstreams[instance].port
        record = ReadyRecord(state, "127.0.0.1", port, zone=zone, capacity=capacity, several_versions=True)
        await self.etcd.put(SPACE.make(InstanceKey(instance)), encode_instance(InstanceRecord("127.0.0.1", port)))
        return await self.etcd.put(SPACE.make(ReadyKey(model, version, instance)), encode_ready(record))

    async def converged(self, revision: int) -> float:
        """Wait until every Envoy and client has acknowledged a revision; when it was so, in monotonic seconds."""

        async def done() -> bool:
            planes = (await self.stack.registry()).planes
            return bool(planes) and all(plane.converged_revision >= revision for plane in planes.values())

        await eventually(done, f"revision {revision} to be acknowledged")
        return time.monotonic()

    def client(self, target: str) -> ProxylessClient:
        folder = self.stack.folder / target.rpartition("/")[2]
        folder.mkdir()
        return ProxylessClient(folder, target, f"127.0.0.1:{self.stack.xds_port}")


@asynccontextmanager
async def registered_in(stack: Stack, *instances: str) -> AsyncIterator[Registered]:
    async with AsyncExitStack() as running:
        fleet = Registered(stack, await running.enter_async_context(EtcdClient(EtcdConfig((stack.etcd.endpoint,)))))
        for name in instances:
            fleet.upstreams[name] = await running.enter_async_context(EchoServer(name, keep=False))
        await stack.envoy.ready()
        yield fleet
