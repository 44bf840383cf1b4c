"""Servers with a config file or flags of their own: what wins, and what waits for what.

Every test waits for states that GetModelStatus shows, or for a line of the server's log.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.support import saved_models
from tests.support.model_server import ModelServer
from tests.support.reloading import config, error_of, reach, reload, states
from tests.support.waiting import eventually

pytestmark = pytest.mark.scenario


async def test_file_wins_over_reloads(tmp_path: Path) -> None:
    """Its own server, with a config file that is polled every second and labels for versions not loaded."""
    saved_models.half_plus_two(tmp_path / "hpt")
    saved_models.half_plus_two(tmp_path / "other")
    file = tmp_path / "config"

    def write(text: str) -> None:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(file)

    mine = config("hpt", tmp_path / "hpt", labels="future=7")
    write(f"model_config_list {{ {mine} }}")
    flags = ["--model_config_file_poll_wait_seconds=1", "--allow_version_labels_for_unavailable_models=true"]
    with ModelServer(tmp_path / "log", f"--model_config_file={file}", *flags) as server:
        request = saved_models.predict_request("hpt", [1.0])
        request.model_spec.version_label = "future"
        assert error_of(lambda: server.predictions.Predict(request, timeout=10)) == (
            "NOT_FOUND",
            "Servable not found for request: Specific(hpt, 7)",
        )
        # Moving a label is refused even with the flag.
        moved = config("hpt", tmp_path / "hpt", labels="future=8")
        assert error_of(lambda: reload(server, moved))[0] == "FAILED_PRECONDITION"
        write(f"model_config_list {{ {config('hpt', tmp_path / 'hpt')} }}")
        reload(server, config("hpt", tmp_path / "hpt"), config("other", tmp_path / "other"))
        await reach(server, "other", "1=END")
        for spoilt in ("garbage {", "", None):
            before = server.child.output.count("Failed to read ModelServerConfig file")
            if spoilt is None:
                file.unlink()
            else:
                write(spoilt)
            await eventually(
                lambda n=before: server.child.output.count("Failed to read ModelServerConfig file") > n,
                f"a complaint about {spoilt!r}",
            )
            assert server.predict("hpt", 1) == 2.5
        write("model_config_list { }")
        await reach(server, "hpt", "1=END")


async def test_load_threads_and_a_single_poll(tmp_path: Path) -> None:
    """Two servers at once: with load threads a broken version's retries hold up nobody; with a poll wait of 0 a new
    version is never seen."""
    saved_models.half_plus_two(tmp_path / "start")
    (tmp_path / "config").write_text(f"model_config_list {{ {config('start', tmp_path / 'start')} }}")
    args = [f"--model_config_file={tmp_path / 'config'}", "--max_num_load_retries=3"]
    with contextlib.ExitStack() as stack:
        parallel = stack.enter_context(
            ModelServer(
                tmp_path / "log",
                *(*args, "--load_retry_interval_micros=3000000", "--num_load_threads=4"),
            )
        )
        once = stack.enter_context(ModelServer(tmp_path / "log2", *args, "--file_system_poll_wait_seconds=0"))
        folder = saved_models.corrupt(tmp_path / "broken")
        saved_models.half_plus_two(tmp_path / "good")
        models = [config(name, tmp_path / name) for name in ("start", "broken", "good")]
        assert error_of(lambda: reload(parallel, *models, timeout=3))[0] == "DEADLINE_EXCEEDED"
        assert states(parallel, "broken") == "1=LOADING"
        assert states(parallel, "good") == "1=AVAILABLE"
        saved_models.half_plus_two(tmp_path / "start", 2)
        await reach(parallel, "start", "2=AVAILABLE 1=END")
        # No longer wanted, it isn't tried again after the wait that it is in.
        folder.rename(tmp_path / "away")
        await reach(parallel, "broken", f"1=END(15:Can't parse {folder}/saved_model.pb as binary proto)")
        assert parallel.child.output.count("load failed") < 4
        assert error_of(lambda: reload(once, models[2], timeout=2))[0] == "DEADLINE_EXCEEDED"
        assert states(once, "good") == ""
        # Dropped by that reload, which needs no poll.
        assert states(once, "start") == "1=END"
