"""Runs in a process of its own, since gRPC reads GRPC_XDS_BOOTSTRAP once: requests to `sys.argv[1]` over a channel with
the options NAME=NUMBER after it, by the commands that come as lines of JSON, each answered with a line of JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

PREDICT = "/tensorflow.serving.PredictionService/Predict"


class Client:
    def __init__(self, target: str, *options: tuple[str, int]) -> None:
        self._channel = grpc.insecure_channel(target, options)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._outcomes: list[list[Any]] = []
        self._slow: list[Any] = []

    def once(self, body: bytes, timeout: float, method: str = PREDICT) -> list[Any]:
        """[when it started (monotonic seconds), code, the instance's name or the error's details]"""
        started = time.monotonic()
        try:
            _, call = self._channel.unary_unary(method).with_call(body, timeout=timeout)
        except grpc.RpcError as error:
            return [started, error.code().name, error.details()]
        return [started, "OK", dict(call.trailing_metadata())["identity"]]

    def requests(self, body: bytes, count: int, timeout: float, method: str = PREDICT) -> list[list[Any]]:
        """One after the other."""
        return [self.once(body, timeout, method) for _ in range(count)]

    def open(self, target: str) -> None:
        """Another channel from here on."""
        self._channel.close()
        self._channel = grpc.insecure_channel(target)

    def until_ok(self, body: bytes) -> float:
        """Ask until a model is known; when the first answer was there (monotonic seconds)."""
        while (outcome := self.once(body, 20))[1] == "NOT_FOUND":
            time.sleep(0.0005)
        assert outcome[1] == "OK", outcome
        return time.monotonic()

    def start(self, body: bytes, threads: int) -> None:
        """Requests without end, until `stop`."""

        def work() -> None:
            while not self._stop.is_set():
                self._outcomes.append(self.once(body, 20))
                time.sleep(0.002)

        self._threads = [threading.Thread(target=work) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[list[Any]]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self._outcomes

    def begin(self, body: bytes, count: int) -> None:
        """Requests at once, whose answers `finish` waits for."""
        self._slow = [self._channel.unary_unary(PREDICT).future(body, timeout=60) for _ in range(count)]

    def finish(self) -> list[str]:
        return ["OK" if call.exception() is None else str(call.exception()) for call in self._slow]


def main() -> None:
    client = Client(sys.argv[1], *((name, int(value)) for name, _, value in (o.partition("=") for o in sys.argv[2:])))
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        if "body" in command:
            command["body"] = bytes.fromhex(command["body"])
        method: Callable[..., Any] = getattr(client, name)
        sys.stdout.write(json.dumps(method(**command)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
