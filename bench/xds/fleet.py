"""The fleet that the benchmarks pretend to have: its records in a real etcd, without one instance behind them.

Invariant: a fleet's keys and values depend on its size alone, so every run reads the same registry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from registry.etcd import EtcdClient, Put
from registry.keys import DEFAULT_PREFIX, InstanceKey, Key, Keyspace, ReadyKey
from registry.records import (
    InstanceRecord,
    InstanceState,
    Proof,
    ReadyRecord,
    ReadyState,
    Servable,
    ServableState,
    encode_instance,
    encode_ready,
)

_PUTS_PER_TRANSACTION = 100
_IN_FLIGHT = 8
_MODELS_PER_INSTANCE = 100
VERSION = 1


@dataclass(frozen=True)
class Fleet:
    """`models` models of one version with `endpoints` endpoints each, on instances of a hundred models."""

    models: int
    endpoints: int = 4
    prefix: str = DEFAULT_PREFIX

    def model(self, number: int) -> str:
        """A model's name: as long as names are that people choose, and equally long in every fleet."""
        return f"recommender-{number:06d}"

    def instances_of(self, number: int) -> list[int]:
        """The instances of one model."""
        group = number // _MODELS_PER_INSTANCE
        return [group * self.endpoints + place for place in range(self.endpoints)]

    def ready(self, number: int, instance: int, *, capacity: int = 1) -> Put:
        """The key of one endpoint; `capacity` is what the benchmarks change."""
        record = ReadyRecord(ReadyState.READY, _address(instance), 8500, 8501, "zone-a", capacity)
        return self.endpoint(self.model(number), _instance(instance), record)

    def endpoint(self, model: str, instance: str, record: ReadyRecord) -> Put:
        """The key of an endpoint of any model."""
        return self._put(ReadyKey(model, VERSION, instance), encode_ready(record))

    def puts(self) -> Iterator[Put]:
        """The whole registry."""
        for number in range(self.models):
            for instance in self.instances_of(number):
                yield self.ready(number, instance)
        groups = -(-self.models // _MODELS_PER_INSTANCE)
        for instance in range(groups * self.endpoints):
            yield self._put(InstanceKey(_instance(instance)), encode_instance(self._instance_record(instance)))

    def _instance_record(self, instance: int) -> InstanceRecord:
        first = instance // self.endpoints * _MODELS_PER_INSTANCE
        numbers = range(first, min(first + _MODELS_PER_INSTANCE, self.models))
        servables = tuple(
            Servable(self.model(number), VERSION, ServableState.AVAILABLE, proof=Proof.PROVED) for number in numbers
        )
        return InstanceRecord(
            _address(instance), 8500, 8501, "zone-a", state=InstanceState.SERVING, servables=servables
        )

    async def register(self, client: EtcdClient) -> None:
        """Write all of it."""
        puts = self.puts()

        async def writer() -> None:
            while batch := list(islice(puts, _PUTS_PER_TRANSACTION)):
                await client.transact((), batch)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_IN_FLIGHT):
                tasks.create_task(writer())

    def _put(self, key: Key, value: bytes) -> Put:
        return Put(Keyspace(self.prefix).make(key), value)


def _instance(number: int) -> str:
    return f"serving-{number:05d}"


def _address(instance: int) -> str:
    return f"10.{instance >> 16 & 255}.{instance >> 8 & 255}.{instance & 255}"
