"""The one error that crosses the server: a canonical code and TF Serving's own message. Invariant: never Code.OK."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """The canonical codes (google/rpc/code.proto), as gRPC, TensorFlow and TF Serving's statuses number them."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServingError(Exception):
    """What a caller is told. `str()` reads as TF Serving's logs do: `NOT_FOUND: Servable not found …`."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


def invalid(message: str) -> ServingError:
    """INVALID_ARGUMENT, the most frequent of them."""
    return ServingError(Code.INVALID_ARGUMENT, message)
