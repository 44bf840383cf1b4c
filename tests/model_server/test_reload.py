"""HandleReloadConfigRequest, state sequences, labels and traps of TF Serving's tables, on real servers.

Every test waits for states that GetModelStatus shows; all share one server, each with models of its own, and leave the
configuration empty.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import text_format

from model_server.messages import model_management_pb2
from tests.support import saved_models
from tests.support.model_server import ModelServer
from tests.support.reloading import config, error_of, follows, reach, reload, states, trace
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    base = tmp_path_factory.mktemp("reload")
    (base / "config").write_text("# no models yet\nmodel_config_list { }\n")
    flags = ["--max_num_load_retries=1", "--load_retry_interval_micros=500000"]
    with ModelServer(base / "log", f"--model_config_file={base / 'config'}", *flags) as server:
        yield server


@pytest.fixture
def server(shared: ModelServer) -> Iterator[ModelServer]:
    yield shared
    reload(shared)


def test_new_model_is_answered_when_its_newest_version_is_available(server: ModelServer, tmp_path: Path) -> None:
    base = tmp_path / "m"
    saved_models.slow_to_load(base, 1, seconds=2)
    saved_models.half_plus_two(base, 2, b=3)
    with trace(server, "new") as seen:
        reload(server, config("new", base, "1 2"))
        assert states(server, "new") in ("2=AVAILABLE 1=START", "2=AVAILABLE 1=LOADING")
        reload(server, config("new", base, "1 2"))  # identical: nothing happens, and it doesn't wait
        assert "1=AVAILABLE" not in states(server, "new")
        assert error_of(lambda: server.predict("new", 1, 1))[0] == "NOT_FOUND"
        assert server.predict("new", 1) == 3.5
        asyncio.run(reach(server, "new", "2=AVAILABLE 1=AVAILABLE"))
    short = ("?", "?2=START 1=START", "?2=LOADING 1=START", "?2=AVAILABLE 1=START")
    follows(seen, *short, "2=AVAILABLE 1=LOADING", "2=AVAILABLE 1=AVAILABLE")


async def test_swap_preserves_availability_and_end_stays_listed(server: ModelServer, tmp_path: Path) -> None:
    base = tmp_path / "m"
    saved_models.half_plus_two(base, 1)
    saved_models.slow_to_load(base, 3, seconds=1, b=4)
    reload(server, config("swap", base, "1"))
    with trace(server, "swap") as seen:
        reload(server, config("swap", base, "3"))
        assert "3=AVAILABLE" not in states(server, "swap"), "an existing model's reload doesn't wait"
        await reach(server, "swap", "3=AVAILABLE 1=END")
    short = ("?3=AVAILABLE 1=AVAILABLE", "?3=AVAILABLE 1=UNLOADING")
    follows(seen, "1=AVAILABLE", "?3=START 1=AVAILABLE", "3=LOADING 1=AVAILABLE", *short, "3=AVAILABLE 1=END")
    reload(server)
    await reach(server, "swap", "3=END 1=END")
    assert error_of(lambda: server.predict("swap", 1)) == ("NOT_FOUND", "Servable not found for request: Latest(swap)")
    reload(server, config("swap", base, "1"))
    await reach(server, "swap", "3=END 1=AVAILABLE")


def test_broken_new_model_fails_the_reload_and_stays_configured(server: ModelServer, tmp_path: Path) -> None:
    folder = saved_models.corrupt(tmp_path / "b")
    saved_models.half_plus_two(tmp_path / "good")
    both = (config("b", tmp_path / "b"), config("good", tmp_path / "good"))
    text = f"Can't parse {folder}/saved_model.pb as binary proto"
    with trace(server, "b") as seen:
        assert error_of(lambda: reload(server, *both)) == (
            "UNKNOWN",
            f"1 model(s) did not become available: {{{{{{name: b version: 1}} due to error: DATA_LOSS: {text}}}, }}",
        )
        asyncio.run(eventually(lambda: "END" in seen[-1], "the trace to see the end"))
    # Its one retry is not seen: LOADING, without an error, all the time.
    follows(seen, "?", "?1=START", "1=LOADING", f"1=END(15:{text})")
    with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}/v1/models/b") as response:
        (status,) = json.load(response)["model_version_status"]
    assert (response.status, status["state"], status["status"]["error_code"]) == (200, "END", "DATA_LOSS")
    assert server.predict("good", 1) == 2.5
    reload(server, *both)  # no longer new, so OK
    saved_models.repair(folder)
    reload(server, *both)
    assert states(server, "b") == f"1=END(15:{text})"
    reload(server, both[1])
    time.sleep(0.5)  # two ticks of the manager; nothing that can be seen changes
    reload(server, *both)
    assert states(server, "b") == "1=AVAILABLE"


async def test_broken_versions_beside_good_ones(server: ModelServer, tmp_path: Path) -> None:
    base = tmp_path / "m"
    saved_models.half_plus_two(base, 2)
    saved_models.empty(base, 3)
    assert error_of(lambda: reload(server, config("mixed", base, "2 3")))[0] == "UNKNOWN"
    text = (
        "5:Specified file path does not appear to contain a SavedModel bundle (should have a file called "
        f"`saved_model.pb`)\nSpecified file path: {base}/3"
    )
    await reach(server, "mixed", f"3=END({text}) 2=AVAILABLE")
    assert server.predict("mixed", 1) == 2.5


async def test_latest_policy_follows_the_disk(server: ModelServer, tmp_path: Path) -> None:
    base = tmp_path / "m"
    saved_models.half_plus_two(base, 2)
    reload(server, config("latest", base))
    saved_models.half_plus_two(base, 4, b=4)
    await reach(server, "latest", "4=AVAILABLE 2=END")
    saved_models.corrupt(base, 5)
    await eventually(lambda: states(server, "latest").startswith("5=END(15:"), "version 5 to fail")
    assert server.predict("latest", 1) == 4.5
    base.rename(tmp_path / "away")
    await eventually(lambda: f"Could not find base path {base}" in server.child.output, "a poll that complains")
    assert server.predict("latest", 1) == 4.5, "a base path that is gone unloads nothing"
    base.mkdir()
    await eventually(lambda: "4=END" in states(server, "latest"), "an empty base path to unload all")


async def test_same_version_at_another_path_is_not_loaded_again(server: ModelServer, tmp_path: Path) -> None:
    saved_models.half_plus_two(tmp_path / "a", 1)
    saved_models.half_plus_two(tmp_path / "b", 1, b=9)
    saved_models.half_plus_two(tmp_path / "b", 2, b=5)
    reload(server, config("moved", tmp_path / "a", "1"))
    reload(server, config("moved", tmp_path / "b", "1 2"))
    await reach(server, "moved", "2=AVAILABLE 1=AVAILABLE")
    assert server.predict("moved", 1, 1) == 2.5
    reload(server, config("moved", tmp_path / "b", "9"))
    await reach(server, "moved", "2=END 1=END")  # a version that isn't on disk: the others go all the same


async def test_unload_waits_for_requests_in_flight(server: ModelServer, tmp_path: Path) -> None:
    base = tmp_path / "m"
    saved_models.slow(base, 1, seconds=2)
    saved_models.half_plus_two(base, 2)
    reload(server, config("busy", base, "1 2"))
    await reach(server, "busy", "2=AVAILABLE 1=AVAILABLE")
    call = server.predictions.Predict.future(saved_models.predict_request("busy", [1.0], 1), timeout=20)
    states(server, "busy")  # answered after the call above has arrived: they share a connection
    reload(server, config("busy", base, "2"))
    await reach(server, "busy", "2=AVAILABLE 1=UNLOADING")
    assert error_of(lambda: server.predict("busy", 1, 1))[0] == "NOT_FOUND"
    assert server.predict("busy", 1) == 2.5
    assert not call.done()
    assert call.result().outputs["y"].float_val[0] == 2.5
    await reach(server, "busy", "2=AVAILABLE 1=END")


async def test_back_while_a_slow_version_loads(server: ModelServer, tmp_path: Path) -> None:
    base = tmp_path / "m"
    saved_models.slow_to_load(base, 2, seconds=1.5)
    saved_models.half_plus_two(base, 3)
    reload(server, config("back", base, "3"))
    reload(server, config("back", base, "2"))
    await reach(server, "back", "3=AVAILABLE 2=LOADING")
    with trace(server, "back") as seen:
        reload(server, config("back", base, "3"))
        await reach(server, "back", "3=AVAILABLE 2=END")
    follows(
        seen,
        *("?3=AVAILABLE 2=LOADING", "?3=AVAILABLE 2=AVAILABLE", "?3=UNLOADING 2=AVAILABLE", "?3=END 2=AVAILABLE"),
        *("?3=START 2=AVAILABLE", "?3=LOADING 2=AVAILABLE", "?3=AVAILABLE 2=AVAILABLE", "?3=AVAILABLE 2=UNLOADING"),
        "3=AVAILABLE 2=END",
    )
    assert any(not one.startswith("3=AVAILABLE") for one in seen), "version 3 is unloaded and loaded again"


async def test_drop_and_add_again_at_once_reports_a_failure_that_is_none(server: ModelServer, tmp_path: Path) -> None:
    """A request in flight holds up the unload, so that the model surely comes back before that has ended."""
    saved_models.slow(tmp_path / "m", seconds=8)
    reload(server, config("again", tmp_path / "m"))
    call = server.predictions.Predict.future(saved_models.predict_request("again", [1.0]), timeout=20)
    states(server, "again")
    reload(server)
    await reach(server, "again", "1=UNLOADING")
    failure = await asyncio.to_thread(error_of, lambda: reload(server, config("again", tmp_path / "m")))
    assert failure == ("UNKNOWN", "1 model(s) did not become available: {{{name: again version: 1}}, }")
    assert call.result().outputs["y"].float_val[0] == 2.5
    await reach(server, "again", "1=AVAILABLE")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
             "supported"),
        ("config { custom_model_config { } }", "ServerModelConfig type not supported by HandleReloadConfigRequest. "
             "Only ModelConfigList is currently supported"),
        (
            f"config {{ model_config_list {{ {config('hpt', '/m')} {config('hpt', '/m')} }} }}",
            "Illegal to list model hpt multiple times in config list",
        ),
        (
            f"config {{ model_config_list {{ {config('r', 'models/x')} }} }}",
            "Expected model r to have an absolute path or URI; got base_path()=models/x",
        ),
        (
            f"config {{ model_config_list {{ {config('r', '/m', platform='onnx')} }} }}",
            "Model r requests unsupported platform onnx",
        ),
        (
            f"config {{ model_config_list {{ {config('r', '/m', platform='')} }} }}",
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform, "
            "model name is r",
        ),
    ],
)  # fmt: skip
def test_refused_configurations(server: ModelServer, text: str, message: str) -> None:
    request = text_format.Parse(text, model_management_pb2.ReloadConfigRequest())
    call = server.models.HandleReloadConfigRequest
    assert error_of(lambda: call(request, timeout=10)) == ("INVALID_ARGUMENT", message)


def test_long_messages_are_cut(server: ModelServer) -> None:
    code, message = error_of(lambda: reload(server, config("r" * 2000, "x")))
    assert code == "INVALID_ARGUMENT"
    assert len(message) == 1024 + len("...TRUNCATED")
    assert message.endswith("...TRUNCATED")


async def test_labels(server: ModelServer, tmp_path: Path) -> None:
    base = tmp_path / "m"
    saved_models.half_plus_two(base, 1)
    saved_models.half_plus_two(base, 2, b=3)

    def by_label(label: str) -> float:
        request = saved_models.predict_request("labelled", [1.0])
        request.model_spec.version_label = label
        response = server.predictions.Predict(request, timeout=10)
        assert response.model_spec.WhichOneof("version_choice") == "version"
        return float(response.outputs["y"].float_val[0])

    def refused(version: int) -> tuple[str, str]:
        text = f"Request to assign label to version {version} of model labelled, which is not currently available for "
        return "FAILED_PRECONDITION", text + "inference"

    # A new model with labels: refused, and nothing is loaded.
    assert error_of(lambda: reload(server, config("labelled", base, "1 2", labels="stable=1"))) == refused(1)
    assert states(server, "labelled") == ""
    reload(server, config("labelled", base, "1 2"))
    await reach(server, "labelled", "2=AVAILABLE 1=AVAILABLE")
    reload(server, config("labelled", base, "1 2", labels="stable=1 canary=2"))
    assert (by_label("stable"), by_label("canary")) == (2.5, 3.5)
    reload(server, config("labelled", base, "1 2", labels="stable=2"))
    assert by_label("stable") == 3.5
    assert error_of(lambda: by_label("canary")) == (
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: canary",
    )
    assert error_of(lambda: reload(server, config("labelled", base, "1 2", labels="stable=7"))) == refused(7)
    assert by_label("stable") == 3.5
    # A label on a version that the same request unloads is accepted, and points nowhere.
    reload(server, config("labelled", base, "1", labels="stable=2"))
    await reach(server, "labelled", "2=END 1=AVAILABLE")
    assert error_of(lambda: by_label("stable")) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(labelled, 2)",
    )
    assert error_of(lambda: reload(server, config("labelled", base, "1", labels="stable=2"))) == refused(2)
    reload(server)
    assert error_of(lambda: by_label("stable"))[0] == "INVALID_ARGUMENT"


async def test_missing_path_freezes_everything_until_it_appears(server: ModelServer, tmp_path: Path) -> None:
    """One reload blocks past its deadline, a second one behind it too, no model's versions are updated meanwhile, and
    both are carried out afterwards."""
    saved_models.half_plus_two(tmp_path / "hpt", 2)
    saved_models.half_plus_two(tmp_path / "hpt", 1)
    reload(server, config("frozen", tmp_path / "hpt", "2"))
    waiting = (config("frozen", tmp_path / "hpt", "1 2"), config("absent", tmp_path / "absent"))
    assert error_of(lambda: reload(server, *waiting, timeout=1.5))[0] == "DEADLINE_EXCEEDED"
    assert error_of(lambda: reload(server, waiting[0], timeout=1.5))[0] == "DEADLINE_EXCEEDED"
    assert states(server, "frozen") == "2=AVAILABLE"
    assert server.predict("frozen", 1) == 2.5
    saved_models.half_plus_two(tmp_path / "absent")
    await reach(server, "frozen", "2=AVAILABLE 1=AVAILABLE")
    # The first reload is over when `absent` is there; then the second, long given up, drops it.
    await reach(server, "absent", "1=END")


async def test_warmup_is_replayed_before_available(server: ModelServer, tmp_path: Path) -> None:
    """A record that can't be answered fails the load."""
    folder = saved_models.half_plus_two(tmp_path / "w")
    request = saved_models.predict_request("whatever", [1.0])
    request.model_spec.signature_name = "nosig"
    saved_models.write_warmup(folder, [request])
    code, message = error_of(lambda: reload(server, config("warm", tmp_path / "w")))
    assert code == "UNKNOWN"
    assert 'FAILED_PRECONDITION: Serving signature key "nosig" not found.' in message
