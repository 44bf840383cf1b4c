"""The benchmark's arithmetic, tables, messages and its reading of /proc: all pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import machine, messages, report
from bench.errors import BenchError
from bench.figures import Measurement, Run, percentile, ratio, run_of, summarise
from monitor.pb import tfs_pb2


def measurement(rate: float, cpu: float | None = None, p99: float = 0.002) -> Measurement:
    """100 requests at `rate` per second, for `cpu` seconds of Envoy's time."""
    percentiles = dict.fromkeys((10, 25, 50, 75, 90, 95), 0.001) | {99: p99}
    return Measurement(Run(100, 100 / rate, 0.001, 0.0005, 0.003, percentiles, {"OK": 100}), cpu)


@given(st.lists(st.floats(0, 10), min_size=1), st.integers(1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= len(ordered) * percent / 100
    assert sum(value < found for value in ordered) < len(ordered) * percent / 100


def test_a_run_is_made_of_its_latencies() -> None:
    run = run_of([0.004, 0.001, 0.003, 0.002], 0.01, {"OK": 4})
    assert (run.requests, run.fastest, run.slowest, run.average) == (4, 0.001, 0.004, pytest.approx(0.0025))
    assert (run.percentiles[50], run.percentiles[99], run.rate) == (0.002, 0.004, pytest.approx(400))
    with pytest.raises(ValueError, match="not one request"):
        run_of([], 1.0, {})


def test_rounds_fold_to_medians_and_true_extremes() -> None:
    summary = summarise([measurement(100, 0.01, 0.005), measurement(300, 0.02, 0.009), measurement(200, 0.06, 0.001)])
    assert (summary.rounds, summary.requests, summary.codes) == (3, 300, {"OK": 300})
    assert (summary.rate, summary.percentiles[99]) == (pytest.approx(200), 0.005)
    assert summary.cpu_per_request == pytest.approx(0.0002)
    assert (summary.fastest, summary.slowest) == (0.0005, 0.003)
    assert summarise([measurement(100)]).cpu_per_request is None


def test_a_ratio_compares_round_with_round() -> None:
    # The machine was ten times slower in the third round: for both alike, so it tells nothing.
    found = ratio([2.0, 2.2, 20.0], [1.0, 1.0, 10.0])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.2)
    assert str(ratio([0.1, 1.1, 1.2, 1.3, 99.0], [1.0] * 5)) == "1.20 (1.10–1.30)", "extremes don't count"
    assert str(found) == "2.00 (2.00–2.20)"
    with pytest.raises(ValueError, match="can't be compared"):
        ratio([1.0], [1.0, 2.0])
    with pytest.raises(BenchError, match="measure for longer"):
        ratio([1.0], [0.0])


def results() -> report.Results:
    found = report.Results({"direct": "straight", "header": "header routing", "routed": "router", "pinned": "pins"})
    for direct, header, routed in ((900, 0.010, 0.012), (1000, 0.010, 0.013), (800, 0.020, 0.025)):
        found.add(200, "direct", measurement(direct))
        found.add(200, "header", measurement(500, header))
        found.add(200, "routed", measurement(400, routed))
    return found


def test_the_budget_table_shows_budget_and_seen_and_what_is_over() -> None:
    budgets = [report.Budget("router", "routed", {200: 1.25}), report.Budget("strict", "routed", {200: 1.2})]
    budgets.append(report.Budget("not measured", "pinned", {}))
    lines = report.budget_table(results(), budgets, "header").splitlines()
    assert lines[0].split("  ")[-1] == "200 B: seen"
    assert lines[1].split() == ["router", "≤", "1.25", "1.25", "(1.20–1.30)"]
    assert lines[2].split() == ["strict", "≤", "1.20", "1.25", "(1.20–1.30)", "OVER"]
    assert lines[3].split() == ["not", "measured", "none", "-"]
    rows = report.budget_rows(results(), budgets, "header")
    assert [row["limit"] for row in rows] == [1.25, 1.2, None]
    assert rows[0]["seen"]["median"] == pytest.approx(1.25)
    assert rows[2]["seen"] is None


def test_the_cost_table_has_no_cost_for_what_no_envoy_of_ours_saw() -> None:
    rows = [line.split("  ") for line in report.cost_table(results(), 200, "header", "direct").splitlines()]
    straight, header, router = ([cell.strip() for cell in row if cell.strip()] for row in rows[1:])
    assert straight[:3] == ["straight", "-", "-"]
    assert header[1:3] == ["100 µs", "1.00 (1.00–1.00)"]
    assert router[1:] == ["130 µs", "1.25 (1.20–1.30)", "0.80 (0.80–0.80)", "0.44 (0.40–0.50)"]


def test_the_document_holds_every_round() -> None:
    document = report.document(results(), "header", {"tools": {}})
    routed = next(one for one in document["targets"] if one["target"] == "routed")
    assert [one["cpu"] for one in routed["rounds"]] == [0.012, 0.013, 0.025]
    assert routed["cpu_against_baseline"]["rounds"] == pytest.approx((1.2, 1.3, 1.25))


@given(st.integers(64, 5000))
def test_a_request_is_as_long_as_asked_and_well_formed(size: int) -> None:
    body = messages.predict_request("model", size)
    assert size - 7 <= len(body) <= size
    request = tfs_pb2.PredictRequest.FromString(body)
    tensor = request.inputs["x"]
    assert request.model_spec.name == "model"
    assert not request.model_spec.HasField("version")
    assert len(tensor.tensor_content) == 4 * tensor.tensor_shape.dim[0].size
    assert body.startswith(b"\x0a\x07\x0a\x05model"), "model_spec comes first"


def test_a_request_can_be_too_short() -> None:
    with pytest.raises(ValueError, match="larger size"):
        messages.predict_request("model", 20)


@pytest.mark.parametrize(("text", "size"), [("200", 200), ("200B", 200), ("600KiB", 614400), ("8 mib", 8388608)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert messages.parse_size(text) == size
    assert messages.parse_size(messages.size_text(size).replace(",", "")) == size


@pytest.mark.parametrize("text", ["", "KiB", "1.5KiB", "-1", "3 furlongs"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        messages.parse_size(text)


def test_cpu_time_is_read_past_a_strange_name() -> None:
    # proc(5): the second field is the command's name, here one made to mislead.
    rest = "16478 16493 16493 0 -1 4194304 6222 0 0 0 15 4 0 0 20 0 7 0 311263 3395686400"
    assert machine.cpu_ticks(f"16493 (envoy) S {rest}") == 19
    assert machine.cpu_ticks(f"16493 (a) S 1 2 (b) R {rest}") == 19


def test_the_cpu_is_named_where_the_kernel_names_it() -> None:
    assert machine.cpu_model("processor\t: 0\nmodel name\t: Some  CPU @ 3 GHz\n") == "Some CPU @ 3 GHz"
    assert machine.cpu_model("processor\t: 0\nBogoMIPS\t: 50.00\n") == ""
