"""What the soak excuses and what it does not, each shown a case of it; and that a seed repeats its choices."""

from __future__ import annotations

import grpc
import pytest

from bench.soak.course import plan
from bench.soak.faults import FAULTS
from bench.soak.memory import Series
from bench.soak.verdict import Kill, Record, Trouble, Version, judge
from tests.support.load import Outcome

OK, UNAVAILABLE, NOT_FOUND = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND
RESET = "upstream connect error or disconnect/reset before headers. reset reason: connection termination"
REFUSED = "upstream connect error … reset reason: remote connection failure, transport failure reason: …"


def failed(started: float, seconds: float, code: grpc.StatusCode = UNAVAILABLE, details: str = RESET) -> Outcome:
    return Outcome(0, started, seconds, code, details)


def answer(started: float, version: int, client: int = 0) -> Outcome:
    return Outcome(client, started, 0.1, OK, "", version, (1.0 + version,))


def wrong(*outcomes: Outcome, of: str = "unsafe", record: Record | None = None) -> list[str]:
    """What is wrong about outcomes of one kind of client."""
    kinds = {"steady": (), "switched": (), "unsafe": (), of: outcomes}
    verdict = judge(kinds["steady"], kinds["switched"], kinds["unsafe"], record or Record())
    return [what for what, _ in verdict.wrong]


def test_only_what_was_in_flight_on_a_killed_server_may_fail() -> None:
    killed = Record(kills=[Kill("a", 10.0, 10.2)])
    assert not wrong(failed(9.9, 0.2), record=killed)
    assert not wrong(failed(10.3, 0.1), record=killed), "Envoy had not yet heard of it"
    assert wrong(failed(9.5, 0.2), record=killed), "it was over before"
    assert wrong(failed(11.0, 0.1), record=killed), "it came long after"
    assert wrong(failed(9.9, 0.2, details=REFUSED), record=killed), "no server got it"
    assert wrong(failed(9.9, 0.2, NOT_FOUND), record=killed)
    assert wrong(failed(9.9, 0.2), of="steady", record=killed), "Envoy could have sent it elsewhere"


def test_a_failing_models_own_error_counts_until_it_is_out() -> None:
    record = Record(troubles=[Trouble("a", "/switch-a/file", False, 10.0, 12.0, 15.0)])
    own = "/switch-a/file; No such file"
    assert not wrong(failed(11.9, 0.2, NOT_FOUND, own), of="switched", record=record)
    assert wrong(failed(12.1, 0.2, NOT_FOUND, own), of="switched", record=record)
    assert wrong(failed(11.0, 0.2, NOT_FOUND, "/switch-b/file"), of="switched", record=record), "another instance's"
    assert wrong(failed(11.0, 0.2), of="switched", record=record)


def test_a_hanging_model_holds_what_it_got_before_it_was_out() -> None:
    record = Record(troubles=[Trouble("a", "/switch-a/file", True, 10.0, 12.0, 15.0)])
    code = grpc.StatusCode.INVALID_ARGUMENT
    assert not wrong(failed(11.0, 4.1, code), of="switched", record=record)
    assert wrong(failed(11.0, 2.0, code), of="switched", record=record), "nothing was released yet"
    assert wrong(failed(12.5, 3.0, code), of="switched", record=record)


def test_versions() -> None:
    assert wrong(answer(1, 2), answer(2, 1), of="steady") == ["version went back"]
    assert not wrong(answer(1, 2), answer(2, 1, client=1), of="steady"), "the other client never saw it"
    record = Record(versions=[Version(1, 0.0), Version(2, 5.0)])
    assert not wrong(answer(4.9, 1), answer(5.1, 2), of="steady", record=record)
    assert wrong(answer(5.1, 1), of="steady", record=record) == ["old version"]
    assert wrong(Outcome(0, 1, 0.1, OK, "", 2, (1.0,)), of="steady") == ["wrong answer"]


def series(seconds: int, growth: float, *, start: float = 40.0) -> Series:
    """`growth` in MiB a minute."""
    return Series("x", 1, [(float(at), start + growth * at / 60) for at in range(seconds)])


def test_what_counts_as_flat() -> None:
    assert series(600, 0).flat
    assert not series(600, 3).flat
    assert series(600, 3).slope == pytest.approx(3)
    assert series(600, 3, start=4_000).flat, "less than a twentieth"
    assert series(100, 30).flat
    assert not series(100, 30).judged
    filling = Series("x", 1, [(float(at), 40.0 + min(at, 150) / 5) for at in range(600)])
    assert filling.flat, "what grows in the first third only"


def test_a_seed_repeats_its_faults_and_each_comes_before_any_comes_again() -> None:
    kinds = list(FAULTS)
    steps = [plan(3, kinds, number) for number in range(2 * len(kinds))]
    again = [plan(3, kinds, number) for number in range(2 * len(kinds))]
    assert [(names, chance.random()) for names, chance in steps] == [
        (names, chance.random()) for names, chance in again
    ]
    for turn in (steps[: len(kinds)], steps[len(kinds) :]):
        assert {names[0] for names, _ in turn} == set(kinds)
    pairs = [names for names, _ in steps if len(names) == 2]
    assert pairs
    for first, second in pairs:
        assert FAULTS[first].part is not FAULTS[second].part
        assert not FAULTS[first].alone
        assert not FAULTS[second].alone
