"""What counts as proof, against a real gRPC server that answers as it is told to."""

from __future__ import annotations

import asyncio
import struct
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest

from monitor.client import CallError, ServerClient
from monitor.pb import tfs_pb2 as tfs
from monitor.prove import Prober, judge
from monitor.servables import Outcome, Probe, WatchedModel
from monitor.warmup import WARMUP_FILE, masked_crc32c
from registry.records import Proof
from tests.monitor.scripted_server import Reply, ScriptedServer, hang, predict_signature

Code = grpc.StatusCode
VALUES = (Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE)


def tfrecords(*records: bytes) -> bytes:
    def framed(data: bytes) -> bytes:
        length = struct.pack("<Q", len(data))
        return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))

    return b"".join(map(framed, records))


def write_warmup(base: Path, version: str, content: bytes) -> WatchedModel:
    file = base / version / WARMUP_FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return WatchedModel("m", str(base))


def predict_log(value: float, model: str = "recorded", signature: str = "") -> bytes:
    log = tfs.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = model, signature
    request.inputs["x"].dtype = 1
    request.inputs["x"].float_val.append(value)
    return log.SerializeToString()


async def outcome(server: ScriptedServer, model: WatchedModel | None = None, deadline: float = 10.0) -> Outcome:
    async with ServerClient("127.0.0.1", server.port) as client, asyncio.TaskGroup() as group:
        prober = Prober(client, deadline, group)
        try:
            return await prober.prove(Probe(model or WatchedModel("m"), 7, 1))
        finally:
            prober.close()


async def test_a_dead_disk_holds_up_neither_the_process_nor_more_than_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = threading.Event()

    def read(*_: object) -> list[tfs.PredictionLog]:
        disk.wait(20)
        return []

    monkeypatch.setattr("monitor.prove.read_warmup", read)
    before = set(threading.enumerate())
    async with (
        ScriptedServer() as server,
        ServerClient("127.0.0.1", server.port) as client,
        asyncio.TaskGroup() as group,
    ):
        prober = Prober(client, 0.1, group)
        try:
            found = [await prober.prove(Probe(WatchedModel("m", "/dead"), 7, 1)) for _ in range(3)]
        finally:
            prober.close()
    stuck = [one for one in threading.enumerate() if one not in before and one.name == "warm-up records"]
    disk.set()
    assert [(one.proof, one.silent) for one in found] == [(Proof.FAILED, True)] * 3
    assert [one.daemon for one in stuck] == [True]


def answering(*replies: Reply) -> Any:
    left = list(replies)

    async def predict(_: bytes) -> Reply:
        return left.pop(0)

    return predict


async def test_zeros_of_the_signatures_shape_to_exactly_this_version() -> None:
    async with ScriptedServer() as server:
        server.signatures = {"serving_default": predict_signature(x=(1, [-1, 28, 28]), name=(7, [-1]))}
        assert await outcome(server) == Outcome(Proof.PROVED, "answered zeros for serving_default")
        (body,) = server.requests("Predict")
    request = tfs.PredictRequest.FromString(body)
    assert request.model_spec.name == "m"
    assert request.model_spec.version.value == 7
    assert request.model_spec.signature_name == "serving_default"
    assert [dim.size for dim in request.inputs["x"].tensor_shape.dim] == [1, 28, 28]
    assert list(request.inputs["name"].string_val) == [b""]


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK], ids=lambda code: code.name)
def test_the_table(code: grpc.StatusCode) -> None:
    error = CallError(code, "text")
    assert judge(error, "records", guessed=False).proof is Proof.FAILED
    expected = Proof.TRUSTED if code in VALUES else Proof.FAILED
    found = judge(error, "zeros", guessed=True)
    assert found.proof is expected
    assert f"{code.name}: text" in found.detail


async def test_a_model_without_its_variables_is_not_proved() -> None:
    async with ScriptedServer() as server:
        server.predict = answering((Code.FAILED_PRECONDITION, "Could not find variable b"))
        assert await outcome(server) == Outcome(Proof.FAILED, "FAILED_PRECONDITION: Could not find variable b")


async def test_a_predict_that_hangs_fails_after_the_deadline() -> None:
    async with ScriptedServer() as server:
        server.predict = hang
        found = await outcome(server, deadline=0.2)
    assert found.proof is Proof.FAILED
    assert "DEADLINE_EXCEEDED" in found.detail or "no answer within" in found.detail


async def test_nothing_listens() -> None:
    server = ScriptedServer()
    await server.start()
    await server.stop()
    assert await outcome(server) == Outcome(Proof.FAILED, "UNAVAILABLE: Connection refused")


@pytest.mark.parametrize(
    ("signatures", "reason"),
    [
        ({"serving_default": predict_signature(x=(1, None))}, "the rank of input x is unknown"),
        ({"serving_default": predict_signature(x=(21, []))}, "input x is a variant"),
        ({"init": predict_signature("")}, "no signature that Predict takes (there is init)"),
        ({}, "no signature that Predict takes (there is none at all)"),
    ],
    ids=["unknown rank", "variant", "no method", "no signature"],
)
async def test_what_cannot_be_guessed_is_trusted(signatures: dict[str, tfs.SignatureDef], reason: str) -> None:
    async with ScriptedServer() as server:
        server.signatures = signatures
        assert await outcome(server) == Outcome(Proof.TRUSTED, reason)
        assert server.requests("Predict") == []


async def test_metadata_that_is_refused_is_trusted_and_metadata_of_a_lost_version_is_not() -> None:
    async with ScriptedServer() as server:
        server.metadata = (Code.UNIMPLEMENTED, "")
        assert (await outcome(server)).proof is Proof.TRUSTED
        server.metadata = (Code.NOT_FOUND, "Servable not found for request: Specific(m, 7)")
        assert (await outcome(server)).proof is Proof.FAILED


async def test_the_models_own_warmup_records_are_asked_with_this_version(tmp_path: Path) -> None:
    classify = tfs.PredictionLog()
    classify.classify_log.request.input = b"\x0a\x00"
    content = tfrecords(predict_log(1.5, signature="sig"), classify.SerializeToString())
    model = write_warmup(tmp_path, "007", content)
    async with ScriptedServer() as server:
        assert await outcome(server, model) == Outcome(Proof.PROVED, "answered 2 of its own warm-up records")
        (predict,), (classified,) = server.requests("Predict"), server.requests("Classify")
        assert server.requests("GetModelMetadata") == []
    request = tfs.PredictRequest.FromString(predict)
    assert (request.model_spec.name, request.model_spec.version.value) == ("m", 7)
    assert request.model_spec.signature_name == "sig"
    assert list(request.inputs["x"].float_val) == [1.5]
    assert tfs.ExamplesRequest.FromString(classified).input == b"\x0a\x00"


async def test_an_author_s_record_that_is_refused_counts_against_the_model(tmp_path: Path) -> None:
    model = write_warmup(tmp_path, "7", tfrecords(predict_log(1), predict_log(2)))
    async with ScriptedServer() as server:
        server.predict = answering(b"", (Code.INVALID_ARGUMENT, "no"))
        assert await outcome(server, model) == Outcome(Proof.FAILED, "INVALID_ARGUMENT: no")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"short", "it ends within a record's header"),
        (b"\xff" * 100, "a record's length does not match its checksum"),
        (tfrecords(predict_log(1))[:-6], "it ends within a record"),
        (tfrecords(b"\xff\xff\xff"), ""),
    ],
    ids=["header", "length", "truncated", "no PredictionLog"],
)
async def test_damaged_warmup_records_are_said_so_and_zeros_are_asked(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    model = write_warmup(tmp_path, "7", content)
    async with ScriptedServer() as server:
        found = await outcome(server, model)
    assert found.proof is Proof.PROVED
    assert "its warm-up records can't be read" in found.detail
    assert reason in found.detail


@pytest.mark.parametrize("base_path", ["", "gs://bucket/m", "relative", "/does/not/exist"])
async def test_a_base_path_that_is_not_here_is_no_fault(base_path: str) -> None:
    async with ScriptedServer() as server:
        assert (await outcome(server, WatchedModel("m", base_path))).detail == "answered zeros for serving_default"
