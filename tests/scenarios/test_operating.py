"""Models operated by commands on managed servers, under load: moved there and back, and by canaries that judge for
themselves. `python -m bench.operating` is the same at length."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.operating.__main__ import canary_report, restart_report, rolling_report
from bench.operating.canaries import canaries
from bench.operating.restarts import restarts
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


async def test_a_canary_and_an_upgrade_go_on_where_a_leader_that_was_killed_left_them(tmp_path: Path) -> None:
    """Waits for a canary's second step, and for an upgrade to load, kills the control plane that leads each time, and
    waits for the other one to lead and for the end."""
    stack = Stack(tmp_path, ("--lease-ttl", "2"), replicas=2)
    try:
        for host in ("a", "b"):
            stack.start_managed(host)
        found = await restarts(stack, ("a", "b"), times=1, kinds=("leader", "upgrade"), clients=4, requests=40)
        assert all(one.right for one in found), restart_report(found)
        assert all(one.took_over is not None for one in found)
    finally:
        stack.close()
