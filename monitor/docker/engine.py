"""The Docker Engine, through the `docker` SDK. Invariant: its blocking calls run in threads of their own, each with a
deadline, so an engine that hangs holds up nothing but what asks it.

The SDK is imported here only, when an Engine is made: a monitor without --docker does without it.
"""

from __future__ import annotations

import asyncio
import io
import logging
import tarfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from monitor.errors import MonitorError

log = logging.getLogger(__name__)

T = TypeVar("T")

DEADLINE = 10.0
"""Seconds for one call; inspecting takes milliseconds, but a busy host's engine may queue."""
_THREADS = 4
_LARGEST_FILE = 4_000_000


class EngineError(Exception):
    """The engine could not be asked, or refused. `mend`: what a user has to change, where waiting is no use."""

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.mend = mend


class Engine:
    """One engine; an async context manager. Raises MonitorError if the SDK is not there, or DOCKER_HOST is nonsense."""

    def __init__(self, url: str | None) -> None:
        try:
            import docker
            import requests
        except ImportError:
            raise MonitorError(
                "--docker needs the Docker SDK, which is not installed: pip install 'modelplane[docker]'"
            ) from None
        self._sdk: Any = docker
        self._failures = (docker.errors.DockerException, requests.exceptions.RequestException)
        try:
            self._arguments = {"base_url": url} if url else docker.utils.kwargs_from_env()
        except self._failures as error:
            raise MonitorError(f"DOCKER_HOST or DOCKER_CERT_PATH: {error}") from None
        try:
            docker.utils.parse_host(self.url)
        except self._failures as error:
            said_by = "--docker-url" if url else "DOCKER_HOST"
            mend = "write unix:///path/to/docker.sock or tcp://HOST:PORT"
            raise MonitorError(f"{said_by} {self.url!r}: {error}; {mend}") from None
        self._local = threading.local()
        self._clients: list[Any] = []
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="docker")

    @property
    def url(self) -> str:
        """Where it is asked."""
        return str(self._arguments.get("base_url") or "unix:///var/run/docker.sock")

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for client in self._clients:
            client.close()

    async def name(self) -> str:
        """The host's name."""
        return str((await self._call(lambda client: client.info())).get("Name", ""))

    async def containers(self) -> list[Mapping[str, Any]]:
        """All containers, running or not, inspected."""
        listed = await self._call(lambda client: client.containers(all=True))
        found = [await self.inspect(one["Id"]) for one in listed]
        return [one for one in found if one is not None]

    async def inspect(self, container_id: str) -> Mapping[str, Any] | None:
        """One container; None if there is none of this id (any more)."""
        return await self._call(lambda client: client.inspect_container(container_id), absent=None)

    async def bridges(self) -> frozenset[str]:
        """The names of the networks that the host itself has an interface in."""
        networks = await self._call(lambda client: client.networks())
        return frozenset(one["Name"] for one in networks if one.get("Driver") == "bridge")

    async def stop(self, container_id: str, grace: float) -> None:
        """SIGTERM, and after `grace` seconds SIGKILL. Returns when it has ended."""
        # The SDK adds the grace to its deadline.
        await self._call(lambda client: client.stop(container_id, timeout=round(grace)), absent=None)

    def read_file(self, container_id: str, path: str) -> bytes:
        """A file inside a container, running or not. Blocks. Raises OSError for one that can't be read, EngineError."""
        return self._pool.submit(
            self._in_thread, lambda client: self._read(client, container_id, path), _MISSING
        ).result()

    @asynccontextmanager
    async def events(self, since: float) -> AsyncIterator[asyncio.Queue[Mapping[str, Any] | None]]:
        """A queue of events from `since` (seconds of the engine's clock) on; None: the stream has ended."""
        queue: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        stream = await self._call(lambda client: client.events(since=f"{since:.9f}", decode=True))
        reader = _Reader(stream, queue, loop)
        reader.start()
        try:
            yield queue
        finally:
            reader.close()

    async def _call(self, work: Callable[[Any], T], *, absent: Any = ...) -> T:
        """`absent` is the answer where there is no such thing."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._in_thread, work, absent)

    def _in_thread(self, work: Callable[[Any], T], absent: Any) -> T:
        try:
            return work(self._client())
        except self._sdk.errors.NotFound as error:
            if absent is _MISSING:
                raise FileNotFoundError(error.explanation) from None
            if absent is ...:
                raise EngineError(_told(error)) from None
            return cast(T, absent)
        except self._failures as error:
            raise self._engine_error(error) from None

    def _engine_error(self, error: BaseException) -> EngineError:
        for cause in _causes(error):
            if isinstance(cause, PermissionError):
                mend = "run the monitor as a user who may use Docker, or name another socket with --docker-url"
                return EngineError(_told(cause), mend=mend)
            if isinstance(cause, ConnectionRefusedError) and (kind := _no_socket(self.url)):
                mend = "mount the engine's socket there, or name another with --docker-url"
                return EngineError(f"there is a {kind}, not a socket", mend=mend)
            if isinstance(cause, OSError) and cause.strerror:
                return EngineError(_told(cause))
            if isinstance(cause, self._sdk.errors.APIError) and cause.status_code == 403:
                mend = "its proxy has to let GET of /version, /info, /events, /networks and /containers through"
                return EngineError(_told(cause), mend=mend)
        return EngineError(_told(error))

    def _client(self) -> Any:
        # A requests.Session is not made for several threads.
        client = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._sdk.APIClient(version="auto", timeout=DEADLINE, **self._arguments)
            self._clients.append(client)
        return client

    def _read(self, client: Any, container_id: str, path: str) -> bytes:
        chunks, status = client.get_archive(container_id, path)
        if target := status.get("linkTarget"):
            chunks.close()
            chunks, status = client.get_archive(container_id, target)
        with io.BytesIO() as buffer:
            for chunk in chunks:
                buffer.write(chunk)
                if buffer.tell() > _LARGEST_FILE:
                    raise OSError(f"it is larger than {_LARGEST_FILE} bytes")
            buffer.seek(0)
            with tarfile.open(fileobj=buffer) as archive:
                member = archive.next()
                file = archive.extractfile(member) if member is not None else None
                if file is None:
                    raise OSError("it is no file")
                return file.read()


_MISSING = object()


class _Reader(threading.Thread):
    """Carries events from the SDK's blocking iterator into the event loop. It may block for ever, so it must not keep
    the process alive."""

    def __init__(
        self, stream: Any, queue: asyncio.Queue[Mapping[str, Any] | None], loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(name="docker-events", daemon=True)
        self._stream, self._queue, self._loop = stream, queue, loop
        self._closed = False

    def run(self) -> None:
        """In the thread. The SDK's iterator ends without an exception when the engine stops."""
        try:
            for event in self._stream:
                self._hand_over(event)
        except Exception as error:  # noqa: BLE001 - what comes out of a socket closed under urllib3 is anything
            if not self._closed:
                log.debug("the engine's events ended with %r", error)
        self._hand_over(None)

    def close(self) -> None:
        """Unblock the thread and let it end."""
        self._closed = True
        self._stream.close()

    def _hand_over(self, event: Mapping[str, Any] | None) -> None:
        if not self._closed:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that the SDK, requests and urllib3 have wrapped in it."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, *one.args]


def _no_socket(url: str) -> str:
    """What is where the URL says that a socket is; empty if it is one, or nothing is there. Docker makes a folder
    wherever it is told to mount what does not exist."""
    path = Path(url.removeprefix("unix://"))
    if not url.startswith("unix://") or path.is_socket() or not path.exists():
        return ""
    return "folder" if path.is_dir() else "file"


def _told(error: BaseException) -> str:
    text = str(getattr(error, "explanation", "") or getattr(error, "strerror", "") or error)
    return " ".join(text.split())
