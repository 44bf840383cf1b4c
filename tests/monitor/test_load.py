"""How busy the server is: from its Prometheus page to the registry."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from monitor.load_watch import LoadWatch
from monitor.server_metrics import Totals, load_between, read_page
from registry.loads import LoadRecord, decode_load
from tests.support.model_server import ModelServer
from tests.support.saved_models import half_plus_two, slow
from tests.support.waiting import eventually

PAGE = b"""# TYPE :tensorflow:cc:saved_model:load_attempt_count counter
:tensorflow:cc:saved_model:load_attempt_count{model_path="/m/1",status="success"} 1
# TYPE :tensorflow:serving:request_count counter
:tensorflow:serving:request_count{model_name="a",status="OK"} 90
:tensorflow:serving:request_count{model_name="a",status="INVALID_ARGUMENT"} 4
:tensorflow:serving:request_count{model_name="b}",status="OK"} 6
:tensorflow:serving:request_latency_bucket{model_name="a",API="Predict",entrypoint="GRPC",le="10"} 0
:tensorflow:serving:request_latency_sum{model_name="a",API="Predict",entrypoint="GRPC"} 1.8e+06
:tensorflow:serving:request_latency_count{model_name="a",API="Predict",entrypoint="GRPC"} 90
:tensorflow:serving:request_latency_sum{model_name="b}",API="predict",entrypoint="REST"} 200000
:tensorflow:serving:request_latency_count{model_name="b}",API="predict",entrypoint="REST"} 6
:tensorflow:serving:runtime_latency_sum{model_name="a"} 77
"""


def test_a_page_is_added_up_over_models_and_ways_in() -> None:
    assert read_page(PAGE) == Totals(requests=100, errors=4, timed=96, busy=2_000_000, queued=None)
    queue = b':tensorflow:serving:batching_session:queuing_latency_sum{thread_pool_name="p"} 5000\n'
    assert read_page(PAGE + queue + queue.replace(b'"p"', b'"q"')).queued == 10_000
    assert read_page(b"# nothing yet\n") == Totals()


def test_a_release_that_counts_only_what_was_timed() -> None:
    page = b"\n".join(line for line in PAGE.splitlines() if b"request_count" not in line)
    assert read_page(page).requests == 96


def test_load_is_what_came_in_between() -> None:
    before = Totals(100, 4, 96, 2_000_000, 1_000_000)
    after = Totals(150, 9, 141, 17_000_000, 6_000_000)
    load = load_between(before, after, 5.0)
    assert load == LoadRecord(in_flight=3.0, requests=10.0, errors=1.0, latency=pytest.approx(1 / 3), queued=1.0)
    assert load_between(after, after, 5.0) == LoadRecord(queued=0.0)


def test_a_server_started_anew_counts_from_nothing() -> None:
    load = load_between(Totals(100, 4, 96, 2e6), Totals(10, 0, 10, 1e5), 5.0)
    assert (load.requests, load.in_flight) == (2.0, 0.02)


@pytest.mark.scenario
async def test_from_a_model_server_to_the_record(tmp_path: Path) -> None:
    """Waits for requests of 0.2 s to show in the load, and to be gone from it again."""
    monitoring = tmp_path / "monitoring.config"
    monitoring.write_text("prometheus_config { enable: true, path: '/monitoring/prometheus/metrics' }\n")
    models = {"slow": tmp_path / "slow", "m": tmp_path / "m"}
    slow(models["slow"], seconds=0.2)
    half_plus_two(models["m"])
    written: list[bytes | None] = []
    log = tmp_path / "server.log"
    with ModelServer.of(log, models, f"--monitoring_config_file={monitoring}") as server:
        watch = LoadWatch("i", "127.0.0.1", server.rest_port, 0.5, written.append)
        task = asyncio.create_task(watch.run())
        try:

            def latest() -> LoadRecord:
                return decode_load(written[-1] or b"{}") if written else LoadRecord(1, 1, 1, 1)

            await eventually(lambda: latest() == LoadRecord(), "an idle server")

            async def ask() -> None:
                with contextlib.suppress(asyncio.CancelledError):
                    while True:
                        await asyncio.to_thread(server.predict, "slow", 1.0)

            asking = [asyncio.create_task(ask()) for _ in range(2)]
            await eventually(lambda: 1.0 <= latest().in_flight <= 3.0, "two requests at a time")
            assert 0.2 <= latest().latency < 2.0
            assert latest().requests > 0
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking)
            await eventually(lambda: latest() == LoadRecord(), "an idle server again")
            seen = len(written)
            await asyncio.sleep(1.1)
            assert len(written) == seen, "nothing new is not written"
            server.child.kill()
            await eventually(lambda: written[-1] is None, "no word of a server that is gone")
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.mark.scenario
async def test_a_server_without_the_page_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Waits for the first answer, a 404."""
    half_plus_two(tmp_path / "m")
    caplog.set_level("INFO")
    with ModelServer.of(tmp_path / "server.log", {"m": tmp_path / "m"}) as server:
        task = asyncio.create_task(LoadWatch("i", "127.0.0.1", server.rest_port, 0.1, lambda record: None).run())
        await eventually(lambda: "no page of metrics" in caplog.text, "the monitor to say so")
        await asyncio.sleep(0.5)
        assert caplog.text.count("no page of metrics") == 1
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
