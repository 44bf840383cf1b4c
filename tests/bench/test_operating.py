"""The verdict of bench.operating: what it must find."""

from __future__ import annotations

import grpc

from bench.operating.verdict import Move, judge
from tests.support.load import Outcome

ANSWERS = {1: 2.0, 2: 3.0}
MOVES = [Move("m", 2, 10.0, 12.0), Move("m", 1, 20.0, 22.0)]


def outcome(started: float, version: int, *, client: int = 0, value: float | None = None) -> Outcome:
    values = (ANSWERS[version] if value is None else value,)
    return Outcome(client, started, 0.1, grpc.StatusCode.OK, "", version, values)


def test_a_clean_switch_has_no_faults() -> None:
    seen = [outcome(9, 1), outcome(10.5, 1), outcome(11, 2), outcome(13, 2), outcome(20.5, 2), outcome(23, 1)]
    assert judge(seen, MOVES, 1, ANSWERS).faults == 0


def test_a_failed_request_is_counted_by_what_it_said() -> None:
    verdict = judge([Outcome(0, 1.0, 0.1, grpc.StatusCode.UNAVAILABLE, "gone")], MOVES, 1, ANSWERS)
    assert verdict.failed == {"UNAVAILABLE gone": 1}


def test_a_value_that_another_version_says_is_a_wrong_answer() -> None:
    assert len(judge([outcome(9, 1, value=3.0)], MOVES, 1, ANSWERS).wrong_answer) == 1


def test_the_old_version_after_the_move_is_outside_of_the_policy() -> None:
    assert len(judge([outcome(13, 1)], MOVES, 1, ANSWERS).outside) == 1


def test_the_new_version_before_the_move_is_outside_of_the_policy() -> None:
    assert len(judge([outcome(9, 2)], MOVES, 1, ANSWERS).outside) == 1
    assert not judge([outcome(9.95, 2)], MOVES, 1, ANSWERS).outside


def test_a_client_that_gets_the_old_version_again_went_back_and_another_client_did_not() -> None:
    seen = [outcome(10.5, 2), outcome(11, 1), outcome(11.1, 1, client=1)]
    assert [one.client for one in judge(seen, MOVES, 1, ANSWERS).back] == [0]
