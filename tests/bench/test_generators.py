"""What the load generators leave behind is read rightly, and an answer that isn't OK never counts.

The outputs below are recorded: ghz 0.93 and h2load of nghttp2 1.52, the bad ones against a model that isn't there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import data_plane, generators, upstream
from bench.errors import BenchError
from bench.generators.ghz import Ghz
from bench.generators.h2load import H2load
from bench.messages import frame, predict_request, predict_response

H2LOAD = """\
starting benchmark...
spawning thread #0: 8 total client(s). 4 total requests
Application protocol: h2c
progress: 100% done

finished in 20.03ms, 2496.75 req/s, 268.11KB/s
requests: 4 total, 4 started, 4 done, {requests}
status codes: 4 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 5.37KB (5498) total, 770B (770) headers (space savings 84.29%), {data}B ({data}) data
                     min         max         mean         sd        +/- sd
time for request:      669us      5.34ms      2.49ms      1.34ms    78.00%
"""
ALL_SUCCEEDED = "4 succeeded, 0 failed, 0 errored, 0 timeout"
H2LOAD_LOG = """\
1795363682806920\t200\t1851
1795363682807000\t200\t2107
1795363682807139\t200\t2179
1795363682807200\t200\t900
"""

GHZ_OK = {
    "count": 2,
    "total": 42092226,
    "rps": 47.5,
    "errorDistribution": {},
    "statusCodeDistribution": {"OK": 2},
    "details": [
        {"timestamp": "2026-11-22T16:08:46.583938506Z", "latency": 2490680, "error": "", "status": "OK"},
        {"timestamp": "2026-11-22T16:08:46.583943441Z", "latency": 2854885, "error": "", "status": "OK"},
    ],
}
GHZ_BAD = {
    "count": 2,
    "total": 42092226,
    "rps": 47.5,
    "errorDistribution": {"rpc error: code = NotFound desc = Servable not found for request: Latest(nope)": 1},
    "statusCodeDistribution": {"OK": 1, "NotFound": 1},
    "details": [],
}


def job(folder: Path, requests: int, response_bytes: int = 51) -> generators.Job:
    message = folder / "message.bin"
    message.write_bytes(predict_request("model", 200))
    return generators.Job("127.0.0.1:1", message, requests, response_bytes=response_bytes, metadata={"a": "b c"})


def h2load(folder: Path, data: int, requests: str = ALL_SUCCEEDED) -> generators.job.Run:
    (folder / "h2load.log").write_text(H2LOAD_LOG)
    return H2load(Path("h2load")).parse(job(folder, 4), folder, H2LOAD.format(data=data, requests=requests))


def test_h2load_is_read(tmp_path: Path) -> None:
    run = h2load(tmp_path, 4 * 56)
    assert (run.requests, run.seconds, run.codes) == (4, pytest.approx(0.02003), {"OK": 4})
    assert (run.fastest, run.slowest, run.percentiles[50]) == (0.0009, 0.002179, 0.001851)


@pytest.mark.parametrize(
    ("data", "requests", "said"),
    [
        (0, ALL_SUCCEEDED, "4 x a gRPC error"),
        (3 * 56, ALL_SUCCEEDED, "3 x OK, 1 x a gRPC error"),
        (3 * 56 + 7, ALL_SUCCEEDED, "no multiple"),
        (5 * 56, ALL_SUCCEEDED, "no multiple"),
        (3 * 56, "3 succeeded, 1 failed, 1 errored, 0 timeout", "3 x OK, 1 x a broken connection"),
        (3 * 56, "3 succeeded, 1 failed, 0 errored, 0 timeout", "3 x OK, 1 x an HTTP error"),
    ],
)
def test_h2load_sees_what_is_not_ok(tmp_path: Path, data: int, requests: str, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        h2load(tmp_path, data, requests)


def test_h2load_is_given_a_framed_message(tmp_path: Path) -> None:
    command = H2load(Path("h2load")).prepare(job(tmp_path, 3), tmp_path)
    assert (tmp_path / "h2load.body").read_bytes() == frame(predict_request("model", 200))
    assert command[command.index("--clients") + 1] == "3", "h2load refuses more clients than requests"
    assert "a: b c" in command


def test_ghz_is_read(tmp_path: Path) -> None:
    (tmp_path / "ghz.json").write_text(json.dumps(GHZ_OK))
    run = Ghz(Path("ghz")).parse(job(tmp_path, 2), tmp_path, "")
    assert (run.requests, run.seconds, run.fastest) == (2, 0.042092226, 0.00249068)


def test_ghz_failures_and_silence_end_it(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"(?s)no report.*panic"):
        Ghz(Path("ghz")).parse(job(tmp_path, 2), tmp_path, "panic")
    (tmp_path / "ghz.json").write_text(json.dumps(GHZ_BAD))
    with pytest.raises(BenchError, match=r"1 x NotFound, 1 x OK: .*Latest\(nope\)"):
        Ghz(Path("ghz")).parse(job(tmp_path, 2), tmp_path, "")
    (tmp_path / "ghz.json").write_text(json.dumps(GHZ_OK))
    with pytest.raises(BenchError, match="sent 3 requests"):
        Ghz(Path("ghz")).parse(job(tmp_path, 3), tmp_path, "")


def test_the_first_generator_on_path_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert generators.choose().name == "python"
    for name in ("h2load", "ghz"):
        (tmp_path / name).touch(mode=0o755)
        assert generators.choose().name == name
    assert generators.choose("python").name == "python"


def test_a_generator_that_is_missing_is_named_with_the_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match="nghttp2-client"):
        generators.choose("h2load")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[data_plane.DataPlane]:
    folder = tmp_path_factory.mktemp("plane")
    with upstream.start("envoy", folder, (), 8) as instance, data_plane.start(folder, instance.port, 1, 1) as started:
        yield started


@pytest.mark.scenario
@pytest.mark.parametrize("name", [name for name in generators.NAMES if name == "python" or shutil.which(name)])
def test_a_real_generator_counts_only_what_is_ok(name: str, plane: data_plane.DataPlane, tmp_path: Path) -> None:
    """Waits for two Envoys, then for each load generator of this machine: right answers count, errors end it."""
    generator, message, address = generators.choose(name), tmp_path / "message.bin", f"127.0.0.1:{plane.grpc_port}"
    assert generator.version()
    for model, cluster in ((data_plane.ROUTED, data_plane.ROUTED), (data_plane.PINNED, f"{data_plane.PINNED}@1")):
        message.write_bytes(predict_request(model, 600 * 1024))
        load = generators.Job(address, message, 40, streams=2, response_bytes=len(predict_response()))
        before = plane.completed(cluster)
        run = generators.run(generator, load, tmp_path)
        assert (run.requests, run.codes, plane.completed(cluster)) == (40, {"OK": 40}, (before[0] + 40, 0))
        assert 0 < run.fastest <= run.percentiles[50] <= run.slowest <= run.seconds
    message.write_bytes(predict_request("nobody", 200))
    with pytest.raises(BenchError, match="got 40 x"):
        generators.run(generator, load, tmp_path)
