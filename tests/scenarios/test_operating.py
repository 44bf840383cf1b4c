"""Models operated by commands on managed servers, under load: moved there and back, and by canaries that judge for
themselves. `python -m bench.operating` is the same at length."""

from __future__ import annotations

import pytest

from bench.operating.__main__ import canary_report, rolling_report
from bench.operating.canaries import canaries
from bench.operating.rolling import rolling
from tests.support.stack import Stack

pytestmark = pytest.mark.scenario


async def test_nobody_fails_while_models_move_and_a_bad_canary_goes_back_by_itself(stack: Stack) -> None:
    """Waits for two models to be moved to their next version and back on both instances, then for a canary that answers
    with errors to be taken back, and for a good one to get all requests."""
    hosts = ("a", "b")
    for host in hosts:
        stack.start_managed(host)
    moved = await rolling(stack, hosts, models=2, moves=2)
    assert not moved.faults, rolling_report(moved)
    assert all(verdict.requests > 100 for verdict in moved.verdicts.values())
    found = await canaries(stack, hosts, times=1, clients=2, faults=("errors", "good"))
    assert all(one.right for one in found), canary_report(found)
    assert [one.failed for one in found if one.fault == "good"] == [0]
