"""Real children: restarted when they die, ended in order, never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from modelplane.local.processes import last_lines
from tests.support.processes import ChildProcess
from tests.support.waiting import eventually

# A process of its own, for it becomes the reaper of whatever its children leave behind, and is to be killed.
PARENT = """
import asyncio, signal, sys
from pathlib import Path
from modelplane.local.processes import Children, Program, become_subreaper
from modelplane.local.supervisor import Backoff, Supervisor

folder = Path(sys.argv[1])

async def main():
    become_subreaper()
    children = Children(
        lambda ended: print("ended", ended.name, ended.how, *ended.tail, flush=True),
        Supervisor(Backoff(first=0.05, longest=0.1)),
    )
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, children.stop)
    for stage, (name, script) in enumerate(sorted(SCRIPTS.items())):
        children.add(Program(name, lambda script=script: ["sh", "-c", script], folder / f"{name}.log", stage, 5.0))
    await children.run()
    print("all ended", flush=True)

SCRIPTS = eval(sys.argv[2])
asyncio.run(main())
"""


def parent(folder: Path, scripts: dict[str, str]) -> ChildProcess:
    return ChildProcess([sys.executable, "-c", PARENT, str(folder), repr(scripts)], folder / "parent.log")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def pid_in(file: Path) -> int:
    return int(await eventually(lambda: file.exists() and file.read_text().strip(), f"a pid in {file}"))


async def test_they_end_stage_by_stage(tmp_path: Path) -> None:
    """Waits for both traps to be set, then for the parent's end."""
    note = 'trap "echo {0} >> {1}/order; exit 0" TERM; touch {1}/{0}.up; while :; do sleep 0.02; done'
    with parent(tmp_path, {name: note.format(name, tmp_path) for name in ("first", "second")}) as process:
        await eventually(lambda: all((tmp_path / f"{name}.up").exists() for name in ("first", "second")), "both to run")
        process.send(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.output == "all ended\n"
    assert (tmp_path / "order").read_text().split() == ["first", "second"]


async def test_what_dies_is_reported_and_started_again(tmp_path: Path) -> None:
    """Waits for the third life, and then for the end."""
    script = f"echo life >> {tmp_path}/lives; echo last words; kill -9 $$"
    with parent(tmp_path, {"mortal": script}) as process:
        await eventually(
            lambda: (tmp_path / "lives").exists() and (tmp_path / "lives").read_text().count("life") >= 3, "3 lives"
        )
        process.send(signal.SIGTERM)
        process.wait(10)
        assert "ended mortal was ended by SIGKILL last words\n" in process.output


async def test_a_command_that_does_not_exist_is_told(tmp_path: Path) -> None:
    """Waits for the report."""
    scripts = {"nothing": "exec /nowhere/nothing"}
    with parent(tmp_path, scripts) as process:
        await eventually(lambda: "ended nothing ended with exit code 127" in process.output, "the report")


async def test_what_a_killed_child_leaves_is_ended(tmp_path: Path) -> None:
    """As a model server whose monitor was killed: another process group, then even another session. Waits for the
    second life of the child, by which time what the first left must be gone."""
    script = (
        f"echo life >> {tmp_path}/lives; setsid sh -c 'echo $$ > {tmp_path}/left.$$; exec sleep 1000' & "
        f"while [ ! -s {tmp_path}/go ]; do sleep 0.02; done; kill -9 $$"
    )
    with parent(tmp_path, {"monitor": script}):
        first = await eventually(lambda: list(tmp_path.glob("left.*")), "the grandchild")
        left = await pid_in(first[0])
        assert alive(left)
        (tmp_path / "go").write_text("go")
        await eventually(lambda: (tmp_path / "lives").read_text().count("life") >= 2, "the second life")
        assert not alive(left)


async def test_a_parent_that_is_killed_takes_its_children_along(tmp_path: Path) -> None:
    """Waits for the child to be gone after its parent's SIGKILL."""
    script = f"echo $$ > {tmp_path}/pid; exec sleep 1000"
    with parent(tmp_path, {"child": script}) as process:
        pid = await pid_in(tmp_path / "pid")
        assert alive(pid)
        process.kill()
        try:
            await eventually(lambda: not alive(pid), "the child to end", 5.0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_the_end_of_a_log_without_gos_stack(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("panic: failed to create WAL\n\ngoroutine 1 [running]:\nmain.main()\n\tmain.go:32\n")
    assert last_lines(tmp_path / "log") == ("panic: failed to create WAL",)


async def test_what_cannot_be_started_now_is_told_and_tried_again(tmp_path: Path) -> None:
    """Its log can't be opened at first. Waits for the report, makes room, and waits for its life."""
    (tmp_path / "late.log").mkdir()
    with parent(tmp_path, {"late": f"touch {tmp_path}/lives; sleep 1000"}) as process:
        await eventually(lambda: "ended late ended with exit code 127 can't be started: " in process.output, "a report")
        (tmp_path / "late.log").rmdir()
        await eventually((tmp_path / "lives").exists, "its life")


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log) == ()
    log.write_text("x" * 10_000 + "\none\n\n  two  \n")
    assert last_lines(log, 2) == ("one", "  two")
