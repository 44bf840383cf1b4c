"""Inference calls whose answers may never come. Invariant: of each load of each version at most `most` are under way at
any time, however often it is asked, and one that was never answered is followed by a rest that doubles.

TensorFlow Serving gives a call's deadline to Session::Run (prediction_service_impl.cc), which then cancels the graph.
But a kernel that blocks takes no notice and goes on holding one of the `--grpc_max_threads`, of which there are four a
core by default: a prober that asked anew after each deadline would sooner or later take all of them from the models
that still answer. And a graph that loops for ever would keep a core busy. So a call whose answer is late is not given
up when nobody waits for it any more, but kept for `CALL` seconds; who asks the same again waits for that answer too. A
late answer counts: the server was slow, and does not hang.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

import grpc

from monitor.client import CallError, ServerClient
from monitor.proof_course import Key

CALL = 120.0
"""Seconds: the deadline of a call; no waiting is longer by default (--probe-deadline)."""
LONGEST_REST = 600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call after `seconds`: its answer, or the error."""

    seconds: float
    body: bytes = b""
    error: CallError | None = None

    @property
    def silent(self) -> bool:
        """It is none: the call's own deadline passed."""
        return self.error is not None and self.error.code is grpc.StatusCode.DEADLINE_EXCEEDED


@dataclass(slots=True)
class _Line:
    """The calls to one load of a version, and until when it is left alone."""

    calls: dict[asyncio.Task[Answer], tuple[str, bytes]] = field(default_factory=dict)
    rest: float = 0.0
    rest_until: float = 0.0


class OpenCalls:
    """The calls to one server, tasks of the caller's group. They go on until they are answered or until `close`."""

    def __init__(self, client: ServerClient, group: asyncio.TaskGroup) -> None:
        self._client = client
        self._group = group
        self._lines: defaultdict[Key, _Line] = defaultdict(_Line)

    async def ask(self, key: Key, method: str, request: bytes, *, most: int, deadline: float = CALL) -> Answer:
        """Ask one load of a version, and wait for the answer for as long as it takes; to be cancelled by a deadline.
        One at a time for each key."""
        line = self._lines[key]
        try:
            return await self._ask(line, (method, request), most, deadline)
        finally:
            if not line.calls and not line.rest:
                self._lines.pop(key, None)

    async def _ask(self, line: _Line, question: tuple[str, bytes], most: int, deadline: float) -> Answer:
        clock, may_ask = asyncio.get_running_loop().time, True
        while True:
            if may_ask and len(line.calls) < most and clock() >= line.rest_until:
                task = self._group.create_task(self._call(question, deadline), name=question[0])
                line.calls[task] = question
                task.add_done_callback(lambda done: _ended(line, done, clock()))
                may_ask = False
            if not line.calls:
                may_ask = True
                await asyncio.sleep(max(0.0, line.rest_until - clock()))
                continue
            same = {task for task, asked in line.calls.items() if asked == question}
            done, _ = await asyncio.wait(same or line.calls, return_when=asyncio.FIRST_COMPLETED)
            if not same:
                may_ask = True
            elif answers := [task.result() for task in done if not task.result().silent]:
                return min(answers, key=lambda answer: answer.error is not None)

    def close(self) -> None:
        """Give all of them up."""
        for line in self._lines.values():
            for task in line.calls:
                task.cancel()

    async def _call(self, question: tuple[str, bytes], deadline: float) -> Answer:
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            body = await self._client.call(*question, deadline)
        except CallError as error:
            return Answer(clock() - started, error=error)
        return Answer(clock() - started, body)


def _ended(line: _Line, task: asyncio.Task[Answer], now: float) -> None:
    del line.calls[task]
    if task.cancelled():
        return
    if task.result().silent:
        line.rest = min(max(2 * line.rest, task.result().seconds), LONGEST_REST)
        line.rest_until = now + line.rest
    else:
        line.rest = line.rest_until = 0.0
