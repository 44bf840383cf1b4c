"""The JSON pages of the HTTP port: /envoys, /quarantine, /guard, /resources.

Invariant: a page is made in the thread that asks for it; the event loop is held for one bounded read at a time (a few
streams, or a copy of one type's references), whatever the page's length.
"""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from control_plane.inspection import render
from control_plane.inspection.inside import Inside
from control_plane.inspection.loop import Ask, LoopBusyError
from control_plane.resources.resource import Resource
from control_plane.xds.events import SHORT_TYPES, StreamStatus

BATCH = 32
"""Streams that are read in one go; each takes some 50 µs."""

LONG_PAGES = 2
"""Pages of many resources that are made at once; more would leave the event loop too little of the interpreter."""

_GUESSED_AMONG = 20_000
"""Names; to look for close ones takes 1 s among these."""

_FALSE = frozenset({"0", "false", "no"})


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; `chunks` is made while it is sent."""

    status: HTTPStatus
    content_type: str
    chunks: Iterable[bytes]


class NoSuchPageError(Exception):
    """There is nothing at this path; the message says what there is."""


def text(status: HTTPStatus, message: str) -> Answer:
    """A line of plain text."""
    return Answer(status, "text/plain; charset=utf-8", [f"{message}\n".encode()])


class Pages:
    """Answers for paths. To be used from any thread but the loop's."""

    PATHS = "/envoys, /quarantine, /guard, /resources/<LDS|RDS|CDS|EDS|ECDS>[/<name>]"

    def __init__(self, inside: Inside, ask: Ask, clock: Callable[[], float] = time.time) -> None:
        self._inside = inside
        self._ask = ask
        self._clock = clock
        self._long = threading.Semaphore(LONG_PAGES)

    def get(self, path: str, query: Mapping[str, str]) -> Answer | None:
        """The page at `path`, which has its escapes undone; None if it is not one of these."""
        root, _, path = path.partition("/")
        page, *rest = path.split("/", 2)
        make = {
            "envoys": self._envoys,
            "quarantine": self._quarantine,
            "guard": self._guard,
            "resources": self._resources,
        }.get(page)
        if root or make is None or (page != "resources" and any(rest)):
            return None
        try:
            return Answer(HTTPStatus.OK, "application/json", make(query, *rest))
        except NoSuchPageError as error:
            return text(HTTPStatus.NOT_FOUND, str(error))
        except LoopBusyError as error:
            return text(HTTPStatus.SERVICE_UNAVAILABLE, f"this control plane is too busy: {error}")

    # Envoys

    def _envoys(self, query: Mapping[str, str]) -> Iterable[bytes]:
        del query
        inside, xds = self._inside, self._inside.xds
        numbers, revision, converged = self._ask(
            lambda: (xds.stream_numbers, inside.revision, xds.converged_revision())
        )
        head = {
            "replica": inside.replica,
            "version": inside.version,
            "revision": revision,
            "converged_revision": converged,
        }
        return render.listing(head, "envoys", self._streams(numbers))

    def _streams(self, numbers: tuple[int, ...]) -> Iterator[render.Document]:
        for start in range(0, len(numbers), BATCH):
            statuses, now = self._ask(partial(self._some, numbers[start : start + BATCH]))
            for status in statuses:
                yield render.stream(status, age=now - status.connected_at, now=self._clock())

    def _some(self, numbers: tuple[int, ...]) -> tuple[list[StreamStatus], float]:
        xds = self._inside.xds
        statuses = (xds.stream(number) for number in numbers)
        return [status for status in statuses if status is not None], xds.now()

    # Quarantine

    def _quarantine(self, query: Mapping[str, str]) -> Iterable[bytes]:
        del query
        tables = self._inside.tables.items()
        held = self._ask(lambda: {view: dict(table.quarantined) for view, table in tables})
        rows = [{"view": view, **row} for view, entries in held.items() for row in render.quarantined(entries)]
        return render.listing({"replica": self._inside.replica}, "quarantined", rows)

    # Lost leases

    def _guard(self, query: Mapping[str, str]) -> Iterable[bytes]:
        del query
        return [render.dump({"replica": self._inside.replica, **self._ask(self._inside.guard)}), b"\n"]

    # Resources

    def _resources(self, query: Mapping[str, str], type_name: str = "", name: str = "") -> Iterable[bytes]:
        view = self._view(query)
        if not type_name:
            return self._types(view)
        type_url = SHORT_TYPES.get(type_name.upper())
        if type_url is None:
            raise NoSuchPageError(f"no resource type {type_name!r}; there are {', '.join(SHORT_TYPES)}")
        head = {"replica": self._inside.replica, "view": view, "type": type_name.upper(), "type_url": type_url}
        if name:
            return self._one(head, type_url, name)
        contents = query.get("contents", "1").lower() not in _FALSE
        return self._all(head, type_url, query.get("model"), contents=contents)

    def _view(self, query: Mapping[str, str]) -> str:
        names = list(self._inside.tables)
        wanted = query.get("view", names[0])
        if wanted not in names:
            raise NoSuchPageError(f"no view {wanted!r}; there are {', '.join(names)}")
        return wanted

    def _types(self, view: str) -> Iterable[bytes]:
        def count() -> tuple[int, dict[str, int]]:
            table = self._inside.tables[view]
            return table.revision, {short: len(table.entries(url)) for short, url in SHORT_TYPES.items()}

        revision, counts = self._ask(count)
        rows = [{"type": short, "type_url": SHORT_TYPES[short], "count": number} for short, number in counts.items()]
        return render.listing({"replica": self._inside.replica, "view": view, "revision": revision}, "types", rows)

    def _read(self, view: str, type_url: str) -> tuple[int, dict[str, Any]]:
        def copy() -> tuple[int, dict[str, Any]]:
            table = self._inside.tables[view]
            return table.revision, dict(table.entries(type_url))

        return self._ask(copy)

    def _all(self, head: Mapping[str, Any], type_url: str, model: str | None, *, contents: bool) -> Iterable[bytes]:
        revision, entries = self._read(head["view"], type_url)
        found: list[Resource] = [
            entry.resource for entry in entries.values() if model is None or entry.resource.model == model
        ]
        found.sort(key=lambda one: one.name)
        documents = self._documents(found, contents=contents)
        return render.listing({**head, "revision": revision, "count": len(found)}, "resources", documents)

    def _documents(self, resources: Iterable[Resource], *, contents: bool) -> Iterator[render.Document]:
        with self._long:
            for one in resources:
                yield render.resource(one, contents=contents)

    def _one(self, head: Mapping[str, Any], type_url: str, name: str) -> Iterable[bytes]:
        table, key = self._inside.tables[head["view"]], (type_url, name)
        revision, found, record, offered = self._ask(
            lambda: (table.revision, table.get(*key), table.quarantined.get(key), table.offered(*key))
        )
        if found is None and record is None:
            raise NoSuchPageError(self._unknown(head, type_url, name))
        document = {**head, "revision": revision, "name": name}
        if found is not None:
            document |= render.resource(found)
        if record is not None:
            refused = None if offered is None else render.message(offered.body)
            document["quarantined"] = {**render.quarantine(record), "resource": refused}
        return [render.dump(document), b"\n"]

    def _unknown(self, head: Mapping[str, Any], type_url: str, name: str) -> str:
        _, entries = self._read(head["view"], type_url)
        close = difflib.get_close_matches(name, entries, n=3) if len(entries) <= _GUESSED_AMONG else []
        hint = f"; close to it: {', '.join(close)}" if close else ""
        return f"no {head['type']} resource {name!r} among {len(entries)}{hint}"
