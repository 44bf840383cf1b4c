"""The real Envoy on the other variants of the protocol: state of the world, and a stream for each subscription."""

from __future__ import annotations

import asyncio
import re

import pytest
from google.protobuf import json_format

from control_plane.xds.events import HeldTooLong, Refused
from tests.support.processes import free_port
from tests.support.waiting import eventually
from tests.xds.client import CDS, ECDS, EDS, LDS
from tests.xds.world import (
    STATIC,
    Backend,
    Probe,
    ask,
    assignment,
    eds_cluster,
    listener,
    plane_and_envoy,
    router,
    separate_source,
)

pytestmark = pytest.mark.scenario


def state_of_the_world(bootstrap: str) -> str:
    assert bootstrap.count("api_type: DELTA_GRPC") == 1
    return bootstrap.replace("api_type: DELTA_GRPC", "api_type: GRPC")


async def test_state_of_the_world_under_load(tmp_path):
    """Waits until each of 30 models answers, each probed from before it exists; nothing but 404 then 200. All the while
    the router's default moves to the newest model and is answered every time. Then until all but it are gone."""
    port = free_port()
    async with Backend().running() as backend:
        first = (eds_cluster("m0"), assignment("m0", backend.port), router("m0"), listener(port))
        async with plane_and_envoy(tmp_path, *first, edit_bootstrap=state_of_the_world) as (plane, envoy):
            wrong: list[tuple[str, int]] = []

            async def probe(name: str) -> None:
                async with Probe(port) as probing:
                    seen = 404
                    while seen != 200:
                        status = await probing.get(cluster=name)
                        wrong.extend([(name, status)] * (status not in (404, 200)))
                        default = await probing.get()
                        wrong.extend([("default", default)] * (default != 200))
                        seen = status
                        await asyncio.sleep(0.005)

            probes = []
            for number in range(1, 31):
                name = f"m{number}"
                probes.append(asyncio.create_task(probe(name)))
                plane.change(eds_cluster(name), assignment(name, backend.port), router(name))
                await asyncio.sleep(0.01)
            await asyncio.gather(*probes)
            last = plane.change(removes=[(kind, f"m{number}") for number in range(30) for kind in (CDS, EDS)])
            await eventually(lambda: plane.converged(last), "all removals to be acknowledged")
            assert await ask(port, cluster="m1") == 404
            assert await ask(port) == 200
            assert wrong == []
            assert not [event for event in plane.events if isinstance(event, HeldTooLong | Refused)]
            assert envoy.stats("cluster_manager.active_clusters")["cluster_manager.active_clusters"] == 1 + STATIC


async def test_state_of_the_world_changes_refusals_and_a_restart(tmp_path):
    """Waits until a changed cluster is warm, until a bad one is blamed while the good one beside it serves, and until
    Envoy is back at a control plane that was restarted: that sends no cluster and no listener again."""
    port = free_port()
    async with Backend().running() as backend:
        resources = (eds_cluster("a"), assignment("a", backend.port), router("a"), listener(port))
        async with plane_and_envoy(tmp_path, *resources, edit_bootstrap=state_of_the_world) as (plane, envoy):
            changed = plane.change(eds_cluster("a", timeout_ms=700))
            await eventually(lambda: plane.converged(changed), "the changed cluster to be acknowledged")
            assert '"0.700s"' in envoy.admin("/config_dump?resource=dynamic_active_clusters")
            both = [assignment(name, backend.port) for name in ("bad", "good")]
            plane.change(eds_cluster("bad", bad=True), eds_cluster("good"), *both, router("good"))

            def blamed() -> list[tuple[str, ...]]:
                events = [event for event in plane.events if isinstance(event, Refused) and not event.searching]
                return [event.names for event in events]

            await eventually(blamed, "the one to blame to be found")
            assert blamed() == [("bad",)]
            await eventually(lambda: "good" in envoy.admin("/clusters"), "the good cluster")
            assert await ask(port, cluster="good") == await ask(port) == 200
            mended = plane.change(eds_cluster("bad"))
            await eventually(lambda: plane.converged(mended), "the mended cluster to be acknowledged")
            await plane.stop()
            assert await ask(port) == 200
            await plane.start()
            await eventually(
                lambda: plane.converged(mended) and plane.xds.streams[0].types.keys() >= {CDS, EDS, LDS, ECDS},
                "Envoy to be back",
            )
            totals = plane.xds.totals()
            assert (totals[CDS].responses, totals[LDS].responses) == (0, 0)
            assert await ask(port, cluster="bad") == 200


@pytest.mark.parametrize("api_type", ["GRPC", "DELTA_GRPC"])
async def test_a_stream_for_each_subscription(tmp_path, api_type):
    """Waits until Envoy serves what separate services told it, until a model is added, changed and removed, and that
    all the streams count as one Envoy."""
    port = free_port()
    source = separate_source(api_type)
    in_bootstrap = json_format.MessageToJson(source, preserving_proto_field_name=True, indent=None)

    def without_ads(bootstrap: str) -> str:
        shortened = re.sub(r"  ads_config:\n(?:    .*\n)+", "", bootstrap)
        shortened, count = re.subn(r"(?<=[lc]ds_config: )\{ ads: .*\}", lambda _: in_bootstrap, shortened)
        assert count == 2
        return shortened

    async with Backend().running() as one, Backend().running() as two:
        first = (
            eds_cluster("a", source=source),
            assignment("a", one.port),
            router("a"),
            listener(port, source=source),
        )
        async with plane_and_envoy(tmp_path, *first, edit_bootstrap=without_ads) as (plane, envoy):
            await eventually(lambda: plane.converged(plane.revision), "Envoy to have everything")
            assert await ask(port) == 200
            assert {status.only_type for status in plane.xds.streams} == {CDS, EDS, LDS, ECDS}
            added = plane.change(eds_cluster("b", source=source), assignment("b", two.port))
            await eventually(lambda: plane.converged(added) and len(plane.xds.streams) == 5, "b to be there")
            assert await ask(port, cluster="b") == 200
            assert plane.xds.nodes == ("modelplane-envoy",)
            moved = plane.change(assignment("b", one.port), eds_cluster("a", timeout_ms=700, source=source))
            await eventually(lambda: plane.converged(moved), "the changes to be acknowledged")
            await eventually(
                lambda: '"0.700s"' in envoy.admin("/config_dump?resource=dynamic_active_clusters"), "a to be warm again"
            )
            before = two.served
            assert await ask(port, cluster="b") == await ask(port) == 200
            assert two.served == before
            removed = plane.change(removes=[(CDS, "b"), (EDS, "b")])
            await eventually(lambda: plane.converged(removed) and len(plane.xds.streams) == 4, "b to be gone")
            assert await ask(port, cluster="b") == 404
            assert not [event for event in plane.events if isinstance(event, HeldTooLong | Refused)]
