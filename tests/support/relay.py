"""TCP to one port, which can be cut, held up and slowed down, while what it leads to goes on."""

from __future__ import annotations

import asyncio
import contextlib

from tests.support.processes import free_port


class Relay:
    """Use as an async context manager; open at first. `delay`: seconds that whatever comes back takes longer."""

    def __init__(self, target: int) -> None:
        self._target, self._port = target, free_port()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self.delay = 0.0

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def open(self) -> None:
        """Take connections."""
        self._flowing.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def close(self) -> None:
        """Cut every connection and refuse new ones."""
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def hold(self) -> None:
        """Like a network that swallows everything: connections stand, and nothing gets through until `release`."""
        self._flowing.clear()

    def release(self) -> None:
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                await asyncio.gather(self._pump(reader, onward_writer), self._pump_back(onward_reader, writer))
            finally:
                onward_writer.close()
        except (OSError, asyncio.CancelledError):
            # Cut on purpose, or the far end is down: either way the near end sees its connection close.
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def _pump_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        clock = asyncio.get_running_loop().time

        async def deliver() -> None:
            while True:
                at, data = await late.get()
                await asyncio.sleep(at - clock())
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()

        delivering = asyncio.create_task(deliver())
        try:
            while data := await reader.read(65536):
                late.put_nowait((clock() + self.delay, data))
            raise ConnectionResetError
        finally:
            delivering.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await delivering

    async def __aenter__(self) -> Relay:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
