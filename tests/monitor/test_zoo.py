"""What the monitor decides for SavedModels that are not what they seem: each row of docs/proof.md, on a real server.

One etcd, one model server and one monitor for all rows; waits for TensorFlow to write the models, for the server's
port, and for each verdict in etcd.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from monitor.pb import tfs_pb2 as tfs
from registry.records import Proof, ReadyState, Servable, ServableState
from tests.monitor.registry_view import RegistryView
from tests.monitor.test_prove import tfrecords
from tests.monitor.test_scenarios import monitor, servable
from tests.support import zoo
from tests.support.etcd import Etcd
from tests.support.model_server import ModelServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario

AVAILABLE, END = ServableState.AVAILABLE, ServableState.END
PROVED, TRUSTED, FAILED = Proof.PROVED, Proof.TRUSTED, Proof.FAILED
HANGING = ("endless", "blocked")
PROBE_DEADLINE = 3.0

ASKED = {
    "plain": (PROVED, "answered zeros for serving_default"),
    "variables": (PROVED, "answered zeros for serving_default"),
    "no_variables": (FAILED, "FAILED_PRECONDITION: .*Could not find variable"),
    "graph_first": (FAILED, "FAILED_PRECONDITION: .*Could not find variable"),
    "mistyped": (FAILED, "its signature does not fit its graph: INVALID_ARGUMENT: Expects arg"),
    "misnamed": (FAILED, "NOT_FOUND: .*nowhere"),
    "mismatch": (TRUSTED, "it runs, but zeros for serving_default are not valid for it: INVALID_ARGUMENT: Matrix size"),
    "unsigned": (TRUSTED, "no signature that Predict takes"),
    "fails": (TRUSTED, "not valid for it: INVALID_ARGUMENT: .*this model takes nothing"),
    "fails_warm": (FAILED, "INVALID_ARGUMENT: .*this model takes nothing"),
    "unknown": (FAILED, "UNKNOWN: .*Input/output error"),
    "lost": (FAILED, "NOT_FOUND: /nowhere"),
    "corrupt": (FAILED, "DATA_LOSS: "),
    "nan": (PROVED, "answered zeros for serving_default, with NaN in output_0"),
    "inf": (PROVED, "answered zeros for serving_default, with Inf in output_0"),
    "endless": (FAILED, "no answer within 3 s"),
    "blocked": (FAILED, "no answer within 3 s"),
    "image": (TRUSTED, "not valid for it: INVALID_ARGUMENT"),
    "example": (TRUSTED, "not valid for it: INVALID_ARGUMENT: .*required but could not be found"),
    "defaulted": (PROVED, "answered zeros for serving_default"),
    "gather": (TRUSTED, "not valid for it: INVALID_ARGUMENT: .*not in \\[0, 2\\)"),
    "divides": (TRUSTED, "not valid for it: INVALID_ARGUMENT: Integer division by zero"),
    "ragged": (PROVED, "answered zeros for serving_default"),
    "sparse": (PROVED, "answered zeros for serving_default"),
    "composite": (TRUSTED, "input x is a sparse or composite tensor"),
    "unranked": (TRUSTED, "the rank of input x is unknown"),
    "huge": (TRUSTED, "input x has 134217728 elements, too many to try"),
    "warm": (PROVED, "answered 1 of its own warm-up records"),
    "warm_bad": (FAILED, "INVALID_ARGUMENT: "),
    "warm_cut": (PROVED, "its warm-up records can't be read: .*it ends within a record"),
}
"""Loaded by TensorFlow Serving: what the monitor finds out. READY unless FAILED."""

LOADED = {
    "empty": "NOT_FOUND: .*does not appear to contain a SavedModel",
    "copying": "NOT_FOUND: .*does not appear to contain a SavedModel",
    "cut_graph": "DATA_LOSS: Can't parse",
    "cut_variables": "(DATA_LOSS|OUT_OF_RANGE): ",
    "cut_index": "DATA_LOSS: ",
    "no_data": "NOT_FOUND: ",
}
"""Version 2, which TensorFlow Serving itself refuses: its error. Version 1 serves on."""


@dataclass(frozen=True)
class Zoo:
    etcd: Etcd
    server: ModelServer
    folder: Path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    folder = tmp_path_factory.mktemp("zoo")
    zoo.write_zoo(folder)
    _make_bad_files(folder)
    log = folder / "server.log"
    models = {name: folder / name for name in (*ASKED, *LOADED)}
    etcd = Etcd(folder)
    try:
        with ModelServer.of(log, models, "--enable_model_warmup=false") as server:
            flags = (f"--model-config-file={log.with_suffix('.config')}", f"--probe-deadline={PROBE_DEADLINE:g}")
            with monitor(etcd, f"--target={server.address}", *flags):
                _copy_bad_versions(folder)
                yield Zoo(etcd, server, folder)
    finally:
        etcd.close()


def _make_bad_files(folder: Path) -> None:
    for name in LOADED:
        shutil.copytree(folder / "variables", folder / name)
    for name in ("no_variables", "graph_first"):
        zoo.copy_without(folder / "variables" / "1", folder / name / "1", "variables")
    records = {
        "warm": ("plain", tfrecords(_record())),
        "warm_bad": ("plain", tfrecords(_record(), _record(dtype=2))),
        "warm_cut": ("plain", tfrecords(_record())[:-6]),
        "fails_warm": ("fails", tfrecords(_record())),
    }
    for name, (model, content) in records.items():
        shutil.copytree(folder / model, folder / name)
        (folder / name / "1" / "assets.extra").mkdir()
        (folder / name / "1" / "assets.extra" / "tf_serving_warmup_requests").write_bytes(content)


def _record(dtype: int = 1) -> bytes:
    log = tfs.PredictionLog()
    tensor = log.predict_log.request.inputs["x"]
    tensor.dtype = dtype
    tensor.tensor_shape.dim.add(size=1)
    tensor.float_val.append(1.0)
    return log.SerializeToString()


def _copy_bad_versions(folder: Path) -> None:
    good = folder / "variables" / "1"
    (folder / "empty" / "2").mkdir()
    (folder / "copying" / "2").mkdir()
    for name, file, how in (
        ("cut_graph", "saved_model.pb", zoo.cut),
        ("cut_variables", f"variables/{zoo.DATA}", zoo.cut),
        ("cut_index", "variables/variables.index", zoo.cut),
        ("no_data", f"variables/{zoo.DATA}", Path.unlink),
    ):
        # The server looks once a second, and must not see it whole.
        whole = shutil.copytree(good, folder / name / ".partial")
        how(whole / file)
        whole.rename(folder / name / "2")


async def verdict(running: Zoo, name: str, version: int, text: str) -> tuple[Servable, ReadyState | None]:
    async with RegistryView(running.etcd.endpoint) as registry:

        async def given() -> Servable | None:
            found = await servable(registry, name, version)
            assert found is not None
            assert re.search(text, f"{found.error}{found.proof_detail}"), found
            return found

        found = await eventually(given, f"the verdict on {name}", timeout=30)
        return found, (await registry.ready()).get((name, version))


@pytest.mark.parametrize("name", ASKED)
async def test_a_model_that_loads(running: Zoo, name: str) -> None:
    proof, text = ASKED[name]
    found, key = await verdict(running, name, 1, text)
    assert (found.state, found.proof) == (AVAILABLE, proof)
    assert key is (ReadyState.LOADING if proof is FAILED else ReadyState.READY)


@pytest.mark.parametrize("name", LOADED)
async def test_a_version_that_does_not_load_leaves_the_one_before(running: Zoo, name: str) -> None:
    found, key = await verdict(running, name, 2, LOADED[name])
    assert (found.state, key) == (END, None)
    _, before = await verdict(running, name, 1, "")
    assert before is ReadyState.READY


async def test_files_that_come_late_mend_nothing_and_the_next_version_does(running: Zoo) -> None:
    await verdict(running, "copying", 2, LOADED["copying"])
    await verdict(running, "graph_first", 1, ASKED["graph_first"][1])
    good = running.folder / "variables" / "1"
    shutil.copytree(good / "variables", running.folder / "graph_first" / "1" / "variables")
    shutil.copytree(good, running.folder / "copying" / "2", dirs_exist_ok=True)
    zoo.copy_without(good, running.folder / "copying" / ".3").rename(running.folder / "copying" / "3")
    found, key = await verdict(running, "copying", 3, "answered")
    assert (found.proof, key) == (PROVED, ReadyState.READY)
    found, _ = await verdict(running, "copying", 2, LOADED["copying"])
    assert found.state is END
    with pytest.raises(grpc.RpcError):
        running.server.predict("graph_first", 1.0)


async def test_describe_says_why(running: Zoo) -> None:
    await verdict(running, "nan", 1, ASKED["nan"][1])
    await verdict(running, "no_variables", 1, ASKED["no_variables"][1])
    for name, words in {
        "nan": ("PROOF", "proved: answered zeros for serving_default, with NaN in output_0"),
        "no_variables": ("NOT READY", "it is AVAILABLE, but doesn't answer a Predict: FAILED_PRECONDITION"),
    }.items():
        command = [sys.executable, "-m", "modelplane", "describe", "model", name, f"--etcd={running.etcd.endpoint}"]
        said = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
        assert all(word in said.stdout for word in words), said
