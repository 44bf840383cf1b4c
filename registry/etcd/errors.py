"""Typed errors that mirror etcd's own. Invariant: every failure of a call to etcd is one of these, and says where.

etcd tells its errors apart by gRPC code and text (api/v3rpc/rpctypes/error.go), so both are read here and nowhere else.
"""

# ruff: noqa: N818  (the names are etcd's own and gRPC's, without "Error" at the end)
from __future__ import annotations

import grpc


class EtcdError(Exception):
    """A call to etcd failed; the message says which member and why. The base of all others: an answer that a retry
    won't change."""


class Unavailable(EtcdError):
    """No answer from any member: down, frozen, without a leader, or overloaded. A write may still have been applied,
    unless `sent` is false."""

    sent: bool = True


class DeadlineExceeded(Unavailable):
    """The call's time ran out. A write may still have been applied."""


class AuthFailed(EtcdError):
    """etcd knows no such user with this password, or asks for a user and we have none."""


class TokenRejected(AuthFailed):
    """The token expired, or the member that gave it was restarted; a new one mends it."""


class PermissionDenied(EtcdError):
    """The user's roles don't cover this key."""


class Compacted(EtcdError):
    """The revision asked for has been compacted away: list again. `compact_revision` is 0 where etcd doesn't tell."""

    compact_revision: int = 0


class FutureRevision(EtcdError):
    """The revision asked for has not happened (yet): this etcd was wiped or restored from a backup."""


class LeaseNotFound(EtcdError):
    """The lease expired or was revoked, and its keys are gone."""


class TooLarge(EtcdError):
    """More than etcd takes in one request: 128 operations, 1.5 MiB (etcd's --max-txn-ops, --max-request-bytes)."""


class NoSpace(EtcdError):
    """etcd's storage quota is used up; it refuses writes until an operator compacts, defragments and disarms it."""


class TlsFilesUnreadable(EtcdError):
    """A certificate or key file can't be read; the message names it."""


# Parts of etcd's messages, most specific first. gRPC codes alone don't do: InvalidArgument covers five of these.
_TEXTS: tuple[tuple[str, type[EtcdError]], ...] = (
    ("required revision has been compacted", Compacted),
    ("required revision is a future revision", FutureRevision),
    ("requested lease not found", LeaseNotFound),
    ("too many operations in txn request", TooLarge),
    ("request is too large", TooLarge),
    ("database space exceeded", NoSpace),
    ("too many requests", Unavailable),
    ("invalid auth token", TokenRejected),
    ("revision of auth store is old", TokenRejected),
    ("user name is empty", AuthFailed),
    ("authentication failed", AuthFailed),
    ("authentication is not enabled", AuthFailed),
    ("permission denied", PermissionDenied),
)
_CODES: dict[grpc.StatusCode, type[EtcdError]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    # A member that stops cancels what it was doing.
    grpc.StatusCode.CANCELLED: Unavailable,
    # etcd forwards internally; a member that lost its leader or its peer's stream may answer with one of these.
    grpc.StatusCode.UNKNOWN: Unavailable,
    grpc.StatusCode.INTERNAL: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: TokenRejected,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
}
# gRPC's words for a call that never left this process, and etcd's for one that it turned away at the door (its
# interceptor, for want of a leader): repeating a write can't apply it twice.
_NOT_SENT = (
    "failed to connect",
    "no connection available",
    "connection refused",
    "dns resolution failed",
    "etcdserver: no leader",
)


def from_status(code: grpc.StatusCode, details: str, where: str) -> EtcdError:
    """The typed error for a gRPC status; `where` is the member's address."""
    text = details or code.name
    kind = next((kind for part, kind in _TEXTS if part in text), None) or _CODES.get(code, EtcdError)
    error = kind(f"etcd at {where}: {text}")
    if isinstance(error, Unavailable):
        error.sent = not any(part in text.lower() for part in _NOT_SENT)
    return error


def from_cancel_reason(reason: str, compact_revision: int, where: str) -> EtcdError:
    """The typed error for a watch that etcd cancelled (WatchResponse.cancel_reason, compact_revision)."""
    if compact_revision:
        compacted = Compacted(f"etcd at {where}: revisions before {compact_revision} have been compacted")
        compacted.compact_revision = compact_revision
        return compacted
    return from_status(grpc.StatusCode.UNAVAILABLE, reason or "watch cancelled without a reason", where)
