"""What the churn benchmark counts as wrong, each shown a case of it."""

from __future__ import annotations

import grpc
from envoy.service.discovery.v3 import discovery_pb2

from bench.churn.audit import Audit, audit
from bench.churn.tap import Conversation, discovery_streams
from bench.churn.verdict import Outcome, violations
from control_plane.resources.resource import CLUSTER, CLUSTER_LOAD_ASSIGNMENT

OK, NOT_FOUND = grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND


def outcome(code: grpc.StatusCode, started: float, *, connection: int = 0) -> Outcome:
    return Outcome(connection, "m", started, started + 0.5, code)


def wrong(*outcomes: Outcome, served: float | None = None, removed: float | None = None) -> int:
    return len(
        violations(
            outcomes,
            served={} if served is None else {"m": served},
            removed={} if removed is None else {"m": removed},
        )
    )


def test_a_model_may_be_unknown_before_it_is_there_and_after_it_was_removed() -> None:
    assert wrong(outcome(NOT_FOUND, 1), outcome(OK, 2), outcome(OK, 3)) == 0
    assert wrong(outcome(OK, 1), outcome(NOT_FOUND, 3), served=0, removed=2) == 0
    assert wrong(outcome(OK, 1), outcome(NOT_FOUND, 1.2)) == 0, "it was asked before the answer came"
    assert wrong(outcome(OK, 1), outcome(NOT_FOUND, 2, connection=1)) == 0, "another worker, or another Envoy"


def test_a_model_that_is_there_may_never_be_unknown() -> None:
    assert wrong(outcome(OK, 1), outcome(NOT_FOUND, 2)) == 1
    assert wrong(outcome(NOT_FOUND, 2), served=1) == 1
    assert wrong(outcome(OK, 1), outcome(NOT_FOUND, 2), removed=3) == 1
    assert wrong(outcome(grpc.StatusCode.UNAVAILABLE, 2), removed=1) == 1


def request(kind: str, *names: str, **claimed: str) -> discovery_pb2.DeltaDiscoveryRequest:
    return discovery_pb2.DeltaDiscoveryRequest(
        type_url=kind, resource_names_subscribe=names, initial_resource_versions=claimed
    )


def response(kind: str, **versions: str) -> discovery_pb2.DeltaDiscoveryResponse:
    message = discovery_pb2.DeltaDiscoveryResponse(type_url=kind)
    for name, version in versions.items():
        message.resources.add(name=name, version=version)
    return message


def counted(one: Audit) -> tuple[int, int, int]:
    return one.sent, one.again, one.after_cluster


def test_what_the_envoy_claims_and_what_it_was_sent_count_as_held() -> None:
    assert counted(audit([request(CLUSTER, a="1"), response(CLUSTER, a="1")])) == (1, 1, 0)
    assert counted(audit([request(CLUSTER, a="1"), response(CLUSTER, a="2"), response(CLUSTER, b="1")])) == (2, 0, 0)
    assert counted(audit([request(CLUSTER), response(CLUSTER, a="1"), response(CLUSTER, a="1")])) == (2, 1, 0)


def test_what_was_asked_for_is_not_sent_again() -> None:
    asked = [request(CLUSTER_LOAD_ASSIGNMENT, "a"), response(CLUSTER_LOAD_ASSIGNMENT, a="1")]
    assert counted(audit([*asked, *asked])) == (2, 0, 0)
    assert counted(audit([*asked, response(CLUSTER_LOAD_ASSIGNMENT, a="1")])) == (2, 1, 0)


def test_endpoints_after_their_cluster_are_counted_apart() -> None:
    talk = [request(CLUSTER_LOAD_ASSIGNMENT, "a", a="1"), response(CLUSTER, a="2")]
    assert counted(audit([*talk, response(CLUSTER_LOAD_ASSIGNMENT, a="1")])) == (2, 0, 1)


def frame(kind: int, stream: int, payload: bytes, flags: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def message(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4, "big") + body


def test_messages_are_found_however_their_bytes_are_cut() -> None:
    first = request(CLUSTER, "a").SerializeToString()
    second = response(CLUSTER, a="1").SerializeToString()
    up = b"P" * 24 + frame(4, 0, b"") + frame(1, 1, b"headers") + frame(0, 1, message(first))
    padded = b"\3" + message(second) + b"\0\0\0"
    down = frame(6, 0, bytes(8)) + frame(0, 1, padded, flags=0x8)
    conversation = Conversation(
        up=[(0.1 * at, up[at : at + 1]) for at in range(len(up))],
        down=[(100.0, down[:20]), (101.0, down[20:])],
    )
    ((one, other),) = discovery_streams(conversation)
    assert (one[1], other[1]) == (request(CLUSTER, "a"), response(CLUSTER, a="1"))


def test_load_reports_on_the_same_connection_are_left_out() -> None:
    up = b"P" * 24 + frame(0, 3, message(b"\x0a\x00")) + frame(0, 1, message(request(CLUSTER).SerializeToString()))
    assert len(list(discovery_streams(Conversation(up=[(1.0, up)])))) == 1
