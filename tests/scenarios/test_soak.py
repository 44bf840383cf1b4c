"""Random faults under steady load, in small: `python -m bench.soak` runs all of them for ten minutes, with a seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.soak.course import soak
from bench.soak.fleet import Fleet

pytestmark = pytest.mark.scenario

KINDS = ("server-killed", "new-version", "etcd-emptied", "plane-frozen", "leases-revoked", "discovery-cut")


async def test_random_faults_cost_no_request(tmp_path: Path) -> None:
    """After each fault waits until registry and Envoy are right; begins none after 15 seconds."""
    async with Fleet(tmp_path, ttl=2) as fleet:
        result = await soak(fleet, seconds=15, seed=7, kinds=KINDS, say=print)
    assert not result.trouble
    assert not result.verdict.wrong
    assert result.steps
    assert result.verdict.requests > 200
