"""The server's metrics as TF Serving's Prometheus page names them, for what there is here: no batching, no graph runs.

Names, labels and buckets are those of servables/tensorflow/util.cc (request_count, request_latency in microseconds,
the latter of requests that went well), the format is that of util/prometheus_exporter.cc.
"""

from __future__ import annotations

import bisect
import re
import threading
from dataclasses import dataclass, field

DEFAULT_PATH = "/monitoring/prometheus/metrics"

# monitoring::Buckets::Exponential(10, 1.8, 33)
BOUNDS = tuple(10 * 1.8**power for power in range(33))


@dataclass(slots=True)
class _Histogram:
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0


class Metrics:
    """Counts requests, from any thread. `path`: where the page is served; empty: nowhere, and nothing is counted."""

    def __init__(self, path: str = "") -> None:
        self.path = path
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._latencies: dict[tuple[str, str, str], _Histogram] = {}

    def ended(self, model: str, api: str, entrypoint: str, status: str, seconds: float) -> None:
        """A request has ended; `status` as gRPC spells it, `entrypoint` GRPC or REST."""
        if not self.path:
            return
        micros = seconds * 1e6
        with self._lock:
            self._counts[model, status] = self._counts.get((model, status), 0) + 1
            if status == "OK":
                histogram = self._latencies.setdefault((model, api, entrypoint), _Histogram())
                histogram.buckets[bisect.bisect_right(BOUNDS, micros)] += 1
                histogram.total += micros

    def page(self) -> bytes:
        """All of it as text."""
        with self._lock:
            counts = dict(self._counts)
            latencies = {labels: (tuple(one.buckets), one.total) for labels, one in self._latencies.items()}
        lines = ["# TYPE :tensorflow:serving:request_count counter"]
        lines += [
            f':tensorflow:serving:request_count{{model_name="{_escaped(model)}",status="{status}"}} {count}'
            for (model, status), count in counts.items()
        ]
        lines.append("# TYPE :tensorflow:serving:request_latency histogram")
        for (model, api, entrypoint), (buckets, total) in latencies.items():
            labels = f'model_name="{_escaped(model)}",API="{api}",entrypoint="{entrypoint}"'
            name, so_far = ":tensorflow:serving:request_latency", 0
            for bound, count in zip((*map(_number, BOUNDS), "+Inf"), buckets, strict=True):
                so_far += count
                lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {so_far}')
            lines += [f"{name}_sum{{{labels}}} {_number(total)}", f"{name}_count{{{labels}}} {so_far}"]
        return ("\n".join(lines) + "\n").encode()


def _number(value: float) -> str:
    return f"{value:.15g}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def page_path(config: str) -> str:
    """Where a MonitoringConfig in protobuf's text format (monitoring_config.proto) wants the page; empty: nowhere."""
    text = re.sub(r"#.*", "", config)
    found = re.search(r"prometheus_config\s*:?\s*\{([^}]*)\}", text)
    if found is None or not re.search(r"\benable\s*:\s*(true|True|t|1)\b", found[1]):
        return ""
    path = re.search(r"""\bpath\s*:\s*["']([^"']+)["']""", found[1])
    return path[1] if path else DEFAULT_PATH
