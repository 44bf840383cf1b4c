"""TF Serving's traps that take a reload that never answers, or a load that holds up others (facts of TF Serving 2.16.1,
3.3, 3.4 and 3.6; the others are in test_reload.py and test_config_file.py). Every test waits for states that
GetModelStatus shows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import text_format

from model_server.messages import model_management_pb2
from tests.support import saved_models
from tests.support.model_server import ModelServer
from tests.support.reloading import config, error_of, reach, reload, states
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


def ask(server: ModelServer, *configs: str, timeout: float) -> grpc.Future:
    """A reload that isn't waited for."""
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(f"config {{ model_config_list {{ {' '.join(configs)} }} }}", request)
    return server.models.HandleReloadConfigRequest.future(request, timeout=timeout)


@contextlib.contextmanager
def serving(folder: Path, *flags: str) -> Iterator[ModelServer]:
    (folder / "config").write_text("model_config_list { }")
    with ModelServer(folder / "log", f"--model_config_file={folder / 'config'}", "--rest_api_port=0", *flags) as server:
        yield server


async def test_a_model_without_a_version_blocks_all_reloads_and_they_are_carried_out_in_turn(tmp_path: Path) -> None:
    """3.3: a NEW model without a version folder, or whose `specific` version is not there, blocks for ever; a request
    whose client has given up is still carried out, in its turn. 3.6: unlike a missing base path, neither holds up the
    versions of other models."""
    saved_models.half_plus_two(tmp_path / "m", 1)
    (tmp_path / "void").mkdir()
    saved_models.half_plus_two(tmp_path / "other", 1)
    m, void = config("m", tmp_path / "m"), config("void", tmp_path / "void")
    with serving(tmp_path) as server:
        reload(server, m)
        for configs in ((m, void), (m, void, config("other", tmp_path / "other", "9")), (m, void), ()):
            assert error_of(lambda c=configs: reload(server, *c, timeout=0.3))[0] == "DEADLINE_EXCEEDED"
        saved_models.half_plus_two(tmp_path / "m", 2, b=3)
        await reach(server, "m", "2=AVAILABLE 1=END")
        assert (states(server, "void"), states(server, "other")) == ("", "")
        saved_models.half_plus_two(tmp_path / "void")
        await reach(server, "void", "1=AVAILABLE")
        # The first is over. The second waits for version 9 of `other`, and the last, which drops all, behind it.
        blocked = ask(server, timeout=1.2)
        assert await asyncio.to_thread(blocked.code) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert states(server, "void") == "1=AVAILABLE"
        saved_models.half_plus_two(tmp_path / "other", 9)
        for model, end in (("other", "9=END"), ("void", "1=END"), ("m", "2=END 1=END")):
            await reach(server, model, end)
        reload(server)


async def test_a_load_that_is_tried_again_shows_no_error_and_holds_up_the_others(tmp_path: Path) -> None:
    """3.4: LOADING without an error while it is retried. 3.6: with --num_load_threads=0 nothing else is loaded
    meanwhile, nor unloaded: START does not move."""
    saved_models.corrupt(tmp_path / "broken")
    saved_models.half_plus_two(tmp_path / "good")
    models = config("broken", tmp_path / "broken"), config("good", tmp_path / "good")
    with serving(tmp_path, "--max_num_load_retries=2", "--load_retry_interval_micros=2000000") as server:
        call = ask(server, *models, timeout=20)
        await reach(server, "broken", "1=LOADING")
        await eventually(lambda: server.child.output.count("load failed") == 2, "the second try")
        assert (states(server, "broken"), states(server, "good")) == ("1=LOADING", "1=START")
        behind = error_of(lambda: reload(server, *models, timeout=0.2))
        assert behind[0] == "DEADLINE_EXCEEDED", "a reload that changes nothing waits too"
        await reach(server, "good", "1=AVAILABLE")
        assert states(server, "broken").startswith("1=END(15:")
        assert call.code() is grpc.StatusCode.UNKNOWN
