"""Inference calls whose answers may never come. Invariant: of each load of each version at most MOST are under way in
the server at any time, however often it is asked and however long it hangs.

TensorFlow Serving goes on with a request whose client has given up (Session::Run is not told), and each one that hangs
holds one of its `--grpc_max_threads`: four per core by default. A prober that cancelled at its deadline and asked anew
would sooner or later take all of them from the models that still answer. So a call whose answer is late is not given
up but kept; who asks the same again waits for that answer too, and a late answer counts: the server was slow, and does
not hang.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass

from monitor.client import CallError, ServerClient
from monitor.proof_course import Key

MOST = 2
LONGEST = 600.0
"""Seconds after which a call is given up all the same: its answer may have been lost."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call after `seconds`: its answer, or the error."""

    seconds: float
    body: bytes = b""
    error: CallError | None = None


class OpenCalls:
    """The calls to one server, tasks of the caller's group. They go on until they are answered or until `close`."""

    def __init__(self, client: ServerClient, group: asyncio.TaskGroup) -> None:
        self._client = client
        self._group = group
        self._open: defaultdict[Key, dict[asyncio.Task[Answer], tuple[str, bytes]]] = defaultdict(dict)

    async def ask(self, key: Key, method: str, request: bytes) -> Answer:
        """Ask one load of a version, and wait for the answer for as long as it takes; to be cancelled by a deadline."""
        same = (method, request)
        while len(self._open[key]) >= MOST and same not in self._open[key].values():
            await asyncio.wait(self._open[key], return_when=asyncio.FIRST_COMPLETED)
        if len(self._open[key]) < MOST:
            task = self._group.create_task(self._call(method, request), name=f"{method} to {key[0]} {key[1]}")
            self._open[key][task] = same
            task.add_done_callback(lambda done: self._ended(key, done))
        asked = [task for task, question in self._open[key].items() if question == same]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        return min((task.result() for task in done), key=lambda answer: answer.error is not None)

    def close(self) -> None:
        """Give all of them up."""
        for calls in self._open.values():
            for task in calls:
                task.cancel()

    async def _call(self, method: str, request: bytes) -> Answer:
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            body = await self._client.call(method, request, LONGEST)
        except CallError as error:
            return Answer(clock() - started, error=error)
        return Answer(clock() - started, body)

    def _ended(self, key: Key, task: asyncio.Task[Answer]) -> None:
        del self._open[key][task]
        if not self._open[key]:
            del self._open[key]
