"""The processes: etcd, the stand-in for a server, and the real monitor; and what is seen of them from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from bench.errors import BenchError
from bench.many_models.server import COUNT, LISTENING, SET, name
from registry.etcd import EtcdClient, EtcdConfig
from registry.follow import Changes, follow
from registry.keys import InstanceKey, Keyspace, ReadyKey
from registry.records import ReadyState, decode_ready
from tests.support.etcd import Etcd
from tests.support.processes import ChildProcess, free_port
from tests.support.waiting import eventually


@dataclass
class Written:
    """What was written into the registry, transaction by transaction, since the last `clear`."""

    operations: list[int] = field(default_factory=list)
    size: int = 0
    instance_records: int = 0
    ready_at: dict[tuple[str, int], float] = field(default_factory=dict)
    """(model, version) -> when its key was seen to be READY; by the machine's clock."""

    def clear(self) -> None:
        """Forget everything."""
        self.operations.clear()
        self.ready_at.clear()
        self.size = self.instance_records = 0


class Fleet:
    """Started by `async with`, ended with it; the monitor with `start_monitor`."""

    def __init__(self, folder: Path, models: int, *flags: str) -> None:
        self.models = models
        self.written = Written()
        self._folder, self._flags = folder, flags
        self._keys = Keyspace()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Fleet:
        async with AsyncExitStack() as stack:
            self.etcd = Etcd(self._folder)
            stack.callback(self.etcd.close)
            self.port = free_port()
            command = [sys.executable, "-m", "bench.many_models.server", str(self.port), str(self.models)]
            self.server = stack.enter_context(ChildProcess(command, self._folder / "server.log"))
            await eventually(lambda: self._listens(), "the stand-in")
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
            self._channel = await stack.enter_async_context(channel)
            client = EtcdClient(EtcdConfig(endpoints=(self.etcd.endpoint,)))
            self._client = await stack.enter_async_context(client)
            following = asyncio.create_task(self._follow())
            stack.push_async_callback(_ended, following)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def base_path(self, number: int) -> Path:
        """The folder of one model's versions, as the config file names it."""
        return self._folder / "models" / name(number)

    def start_monitor(self) -> ChildProcess:
        """The real command; its models come from a config file, as TF Serving's do."""
        rows = [
            f'config {{ name: "{name(number)}" base_path: "{self.base_path(number)}" }}'
            for number in range(self.models)
        ]
        for number in range(self.models):
            self.base_path(number).joinpath("1").mkdir(parents=True, exist_ok=True)
        file = self._folder / "models.config"
        file.write_text("model_config_list {\n" + "\n".join(rows) + "\n}\n")
        command = [sys.executable, "-m", "modelplane", "monitor", f"--etcd={self.etcd.endpoint}", "--instance=i"]
        command += [f"--target=127.0.0.1:{self.port}", f"--model-config-file={file}", *self._flags]
        self.monitor = self._stack.enter_context(ChildProcess(command, self._folder / "monitor.log"))
        return self.monitor

    async def calls(self) -> int:
        """How many status calls the server has had."""
        return int(await self._call(COUNT, b""))

    async def set(self, states: Mapping[str, Mapping[int, str]]) -> float:
        """Change models' states; the moment from which they are told so, by the machine's clock."""
        return float(await self._call(SET, json.dumps(states).encode()))

    async def until(self, condition: Callable[[], Any], what: str, timeout: float = 120.0) -> None:
        """Wait for something that was written."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or not self.monitor.alive():
                raise BenchError(f"waited for {what}; the monitor:\n{self.monitor.output[-2000:]}")
            await asyncio.sleep(0.005)

    async def _call(self, method: str, body: bytes) -> bytes:
        call: Any = self._channel.unary_unary(method)
        return bytes(await call(body, timeout=30))

    def _listens(self) -> bool:
        if not self.server.alive():
            raise BenchError(f"the stand-in has ended:\n{self.server.output[-2000:]}")
        return LISTENING in self.server.output

    async def _follow(self) -> None:
        async for update in follow(self._client, self._keys.prefix):
            if isinstance(update, Changes):
                now = time.monotonic()
                written = self.written
                written.operations.append(len(update.puts) + len(update.deletes))
                written.size += sum(map(len, update.puts.values()))
                for raw, value in update.puts.items():
                    match self._keys.parse(raw):
                        case ReadyKey(model, version, _) if decode_ready(value).state is ReadyState.READY:
                            written.ready_at.setdefault((model, version), now)
                        case InstanceKey():
                            written.instance_records += 1


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
