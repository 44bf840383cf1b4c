"""What stands in a real etcd about one instance, for tests."""

from __future__ import annotations

from types import TracebackType

from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import InstanceKey, Keyspace, PlaneKey, ReadyKey
from registry.records import (
    InstanceRecord,
    PlaneRecord,
    ReadyRecord,
    ReadyState,
    decode_instance,
    decode_ready,
    encode_plane,
)


class RegistryView:
    """Reads the fleet's keys, and writes the records of control planes that a test invents."""

    def __init__(self, endpoint: str) -> None:
        self.client = EtcdClient(EtcdConfig(endpoints=(endpoint,)))
        self.keys = Keyspace()

    async def __aenter__(self) -> RegistryView:
        await self.client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.__aexit__(kind, error, trace)

    async def ready(self) -> dict[tuple[str, int], ReadyState]:
        return {name: record.state for name, record in (await self.records()).items()}

    async def records(self) -> dict[tuple[str, int], ReadyRecord]:
        listing = await self.client.list(self.keys.ready)
        found = {}
        for entry in listing.entries:
            key = self.keys.parse(entry.key)
            assert isinstance(key, ReadyKey)
            found[key.model, key.version] = decode_ready(entry.value)
        return found

    async def instance(self, name: str) -> InstanceRecord | None:
        entry = await self.client.get(self.keys.make(InstanceKey(name)))
        return decode_instance(entry.value) if entry else None

    async def revision(self) -> int:
        return (await self.client.list(self.keys.prefix)).revision

    async def empty(self) -> bool:
        return not (await self.client.list(self.keys.prefix)).entries

    async def plane(self, replica: str, record: PlaneRecord | None) -> None:
        key = self.keys.make(PlaneKey(replica))
        await (self.client.delete(key) if record is None else self.client.put(key, encode_plane(record)))
