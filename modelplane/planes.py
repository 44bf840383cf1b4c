"""The control planes of a fleet, and what their HTTP ports tell. Invariant: every wait is bounded, and one replica that
can't be asked never keeps the others from being heard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from modelplane.access import FleetConfig, read_fleet
from modelplane.errors import UserError
from modelplane.fleet import Picture
from registry.addresses import split_address

_TOO_OLD = "its record in the registry does not say where its HTTP port is; it is older than this command"
_STRANGER = "what listens there is not a control plane's HTTP port"
_CHUNK = 1 << 16

NO_PLANE = "The registry names no control plane: Envoys keep what they have, and take in no change."


@dataclass(frozen=True, slots=True)
class PlaneConfig:
    """Which control planes to ask."""

    control_plane: tuple[str, ...] = field(
        default=(),
        metadata={
            "metavar": "HOST:PORT",
            "help": "HTTP port of a control plane to ask; without it those that the registry names are asked",
        },
    )
    timeout: float = field(
        default=5.0, metadata={"metavar": "SECONDS", "help": "how long a control plane may be silent"}
    )

    def __post_init__(self) -> None:
        for address in self.control_plane:
            try:
                split_address(address)
            except ValueError as error:
                raise ValueError(f"--control-plane: {error}, for example plane-0:18080") from None
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"--timeout: {self.timeout} is not possible; give more than 0 seconds")


@dataclass(frozen=True, slots=True)
class Plane:
    """A control plane: its name in the registry, or its address where nobody named it; `http` may be empty."""

    name: str
    http: str

    def __str__(self) -> str:
        return f"{self.name} at {self.http}" if self.http and self.http != self.name else self.name


class PlaneError(Exception):
    """Why a control plane could not be asked."""


class NoPageError(PlaneError):
    """A control plane that answered that there is no such thing; the message is its own."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one control plane answered: a page, or for want of one the reason in `error`."""

    plane: Plane
    page: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


async def find_planes(fleet: FleetConfig, config: PlaneConfig) -> list[Plane]:
    """The control planes to ask, by name. Raises UserError where there are none to be found."""
    if config.control_plane:
        return [Plane(address, address) for address in config.control_plane]
    return named_planes(await read_fleet(fleet))


def named_planes(picture: Picture) -> list[Plane]:
    """Those that the registry names. Raises UserError if it names none."""
    if not picture.planes:
        raise UserError("the registry names no control plane; start one, or choose one with --control-plane")
    return [Plane(name, record.http) for name, record in sorted(picture.planes.items())]


async def ask_all(planes: Sequence[Plane], page: str, timeout: float) -> list[Report]:
    """Ask all at once; the reports in the order of the planes."""

    async def ask(plane: Plane) -> Report:
        try:
            return Report(plane, await fetch(plane, page, timeout))
        except PlaneError as error:
            return Report(plane, error=str(error))

    return list(await asyncio.gather(*(ask(plane) for plane in planes)))


async def ask_first(planes: Sequence[Plane], page: str, timeout: float) -> Report:
    """The page from the first that answers. Raises UserError that says of each why it didn't; a control plane that
    answers that there is no such page has answered."""
    failures = []
    for plane in planes:
        try:
            return Report(plane, await fetch(plane, page, timeout))
        except NoPageError as error:
            raise UserError(f"{plane.name}: {error}") from None
        except PlaneError as error:
            failures.append(f"{plane}: {error}")
    raise UserError(f"no control plane answers: {'; '.join(failures)}")


async def fetch(plane: Plane, page: str, timeout: float) -> dict[str, Any]:
    """A page, parsed. Raises PlaneError."""
    chunks: list[bytes] = []
    await copy(plane, page, timeout, chunks.append)
    try:
        return dict(json.loads(b"".join(chunks)))
    except ValueError:
        raise PlaneError(_STRANGER) from None


async def copy(plane: Plane, page: str, timeout: float, write: Callable[[bytes], object]) -> None:
    """Hand a page's bytes to `write` as they come; `timeout` seconds for each of them. Raises PlaneError."""
    if not plane.http:
        raise PlaneError(_TOO_OLD)
    last = b""
    try:
        async for chunk in _get(plane.http, page, timeout):
            write(chunk)
            last = (last + chunk)[-2:]
    except TimeoutError:
        raise PlaneError(f"no answer for {timeout:g} s") from None
    except OSError as error:
        raise PlaneError(_reason(error)) from None
    # An HTTP/1.0 answer ends with the connection, so only its text tells that it is whole.
    if last != b"}\n":
        raise PlaneError("the answer was cut short")


def resource_page(type_name: str = "", name: str = "", **query: str) -> str:
    """The path of resources: all types, one type, or one resource."""
    path = "/".join(["/resources", *([quote(type_name, safe="")] if type_name else [])])
    path += f"/{quote(name, safe='')}" if name else ""
    return f"{path}?{urlencode(query)}" if query else path


async def _get(address: str, path: str, timeout: float) -> AsyncIterator[bytes]:
    """The body of `GET path`. Raises OSError, TimeoutError, and PlaneError for any status but 200."""
    async with asyncio.timeout(timeout):
        reader, writer = await asyncio.open_connection(*split_address(address))
    try:
        async with asyncio.timeout(timeout):
            # 1.0, so that the body comes as it is, and ends with the connection.
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
            await writer.drain()
            status = await _head(reader)
        if status != 200:
            async with asyncio.timeout(timeout):
                text = (await reader.read(_CHUNK)).decode(errors="replace").strip()
            if status == 404 and text:
                raise NoPageError(text)
            raise PlaneError(text if status == 503 and text else f"HTTP status {status}")
        while True:
            async with asyncio.timeout(timeout):
                chunk = await reader.read(_CHUNK)
            if not chunk:
                return
            yield chunk
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> int:
    """Read up to the body; the status. Raises PlaneError for what is no HTTP."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        version, status, *_ = head.split(maxsplit=2)
        if not version.startswith(b"HTTP/"):
            raise ValueError
        return int(status)
    except (ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise PlaneError(_STRANGER) from None


def _reason(error: OSError) -> str:
    """asyncio's own text repeats the address, which stands beside it already."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return error.strerror or str(error)
