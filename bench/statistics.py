"""What load reports about all clusters cost: `python -m bench.statistics`. Real Envoy; nobody sends it a request.

For some numbers of clusters: the bytes of a report, the CPU time that it takes of Envoy's main thread (which also takes
in configuration) and of this project's reader. The reports are asked for often, so that they stand out; how often a
control plane asks is control_plane/xds/load_reports.py's to say.
"""

from __future__ import annotations

import argparse
import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from envoy.service.load_stats.v3 import lrs_pb2

from bench.fixed_xds import FixedXds
from control_plane.envoy_files import render_bootstrap
from control_plane.model import Endpoint, Model
from control_plane.resources.settings import DataPlaneSettings
from control_plane.resources.translate import fleet_resources, model_resources
from control_plane.xds.load_totals import LoadTotals
from tests.support.envoy import Envoy
from tests.support.processes import free_port

_TICKS = os.sysconf("SC_CLK_TCK")


class Asking(FixedXds):
    """Asks for reports about all clusters, or only about none, as `ask` says."""

    def __init__(self, resources: Any) -> None:
        super().__init__(resources)
        self.reports: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.questions: queue.SimpleQueue[lrs_pb2.LoadStatsResponse] = queue.SimpleQueue()

    def ask(self, interval: float) -> None:
        """Every so many seconds; 0: not any more."""
        response = lrs_pb2.LoadStatsResponse(send_all_clusters=interval > 0, report_endpoint_granularity=True)
        response.load_reporting_interval.FromMilliseconds(int(interval * 1e3) or 3_600_000)
        self.questions.put(response)

    def StreamLoadStats(self, request_iterator: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        """Hand the reports on as bytes."""

        def read() -> None:
            try:
                for report in request_iterator:
                    self.reports.put(report.SerializeToString())
            except grpc.RpcError:
                pass

        threading.Thread(target=read, daemon=True).start()
        while context.is_active():
            try:
                yield self.questions.get(timeout=0.5)
            except queue.Empty:
                continue


def main_thread_seconds(pid: int) -> float:
    """CPU time of a process's main thread; to the nanosecond."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def measure(clusters: int, folder: Path, seconds: float, interval: float) -> None:
    """One line of the table."""
    settings = DataPlaneSettings(listen_address="127.0.0.1", grpc_port=free_port(), rest_port=0, reuse_port=False)
    endpoints = tuple(Endpoint(f"i{number}", "127.0.0.1", 9000 + number, 0) for number in range(4))
    # Two clusters each: MODEL and MODEL@1.
    models = [Model(f"recommender-{number:06d}", ((1, endpoints),), 1, pinned=False) for number in range(clusters // 2)]
    resources = [resource for model in models for resource in model_resources(model, settings)]
    admin = free_port()
    with Asking((*resources, *fleet_resources({}, settings, {}))) as plane:
        envoy = Envoy(folder, render_bootstrap([plane.address], admin=f"127.0.0.1:{admin}"), admin)
        try:
            while active(envoy) < clusters:
                time.sleep(0.2)
            time.sleep(2)
            idle = spent(envoy.child.pid, seconds)
            plane.ask(interval)
            plane.reports.get(timeout=30)
            while not plane.reports.empty():
                plane.reports.get()
            busy = spent(envoy.child.pid, seconds)
            plane.ask(0)
            reports = [plane.reports.get() for _ in range(plane.reports.qsize())]
        finally:
            envoy.close()
    totals, began = LoadTotals(), time.process_time()
    for report in reports:
        totals.reported(1, lrs_pb2.LoadStatsRequest.FromString(report), everything=True)
    read = (time.process_time() - began) / len(reports)
    named = len(lrs_pb2.LoadStatsRequest.FromString(reports[-1]).cluster_stats)
    print(
        f"{clusters:>7,} clusters: {named:>7,} named, {len(reports[-1]):>9,} bytes, "
        f"Envoy {(busy - idle) / len(reports) * 1e3:>7.2f} ms, reader {read * 1e3:>6.2f} ms ({len(reports)} reports)",
        flush=True,
    )


def active(envoy: Envoy) -> int:
    """How many clusters it has; 0 while it is too busy to say."""
    name = "cluster_manager.active_clusters"
    try:
        return envoy.stats(name)[name]
    except TimeoutError:
        return 0


def spent(pid: int, seconds: float) -> float:
    """CPU seconds of the main thread within that time."""
    before = main_thread_seconds(pid)
    time.sleep(seconds)
    return main_thread_seconds(pid) - before


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.statistics", description=__doc__)
    parser.add_argument("--clusters", type=int, nargs="+", default=[10, 1_000, 10_000])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement (default %(default)s)")
    parser.add_argument("--interval", type=float, default=0.25, help="between two reports (default %(default)s)")
    arguments = parser.parse_args()
    for clusters in arguments.clusters:
        with tempfile.TemporaryDirectory(prefix="modelplane-bench-") as folder:
            measure(clusters, Path(folder), arguments.seconds, arguments.interval)


if __name__ == "__main__":
    main()
