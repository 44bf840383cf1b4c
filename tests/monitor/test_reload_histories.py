"""Random wishes, disks and restarts against a model of TensorFlow Serving's reloads: the machine ends where it is
wanted, or says by name why not, and keeps its two rules on the way."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.model_config import read_model
from monitor.pb import tfs_pb2 as tfs
from monitor.reload import Reload, ReloadTiming
from monitor.reload_step import Progress, Result
from monitor.servables import Policy
from monitor.told import Told
from tests.monitor.reload_sim import STEP, Request, Sim
from tests.support.examples import examples

TIMING = ReloadTiming(deadline=2.0, last=8.0)
NAMES = "abc"


def model(name: str, path: str = "", versions: tuple[int, ...] = (), labels: tuple[int, ...] = (), **more: Any) -> Any:
    config = tfs.ModelConfig(name=name, base_path=path or f"/{name}", model_platform="tensorflow", **more)
    if versions:
        config.model_version_policy.specific.versions.extend(versions)
    for version in labels:
        config.version_labels[f"label{version % 2}"] = version
    return config


def config(*models: Any) -> tfs.ModelServerConfig:
    return tfs.ModelServerConfig(model_config_list=tfs.ModelConfigList(config=models))


class Run:
    """A machine beside a server, step by step. `sees`: the machine sees the server's disk."""

    def __init__(self, *, sees: bool, present: tuple[Any, ...] = (), disk: dict[str, set[int]] | None = None) -> None:
        disk = {f"/{name}": {1, 2} for name in NAMES} if disk is None else disk
        configured = {one.name: one for one in present}
        self.sim = Sim(configured, disk)
        self.machine = Reload(Told("i"), configured, TIMING)
        self.sees, self.now = sees, 0.0
        self.call: tuple[Request, float] | None = None
        self.down = 0
        self.dropped: set[str] = set()
        self.queued = 0

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.now = round(self.now + STEP, 3)
            if self.down:
                self.down -= 1
                continue
            self.sim.step()
            self.observe()
            self.command()

    def until_settled(self, seconds: float = 200.0) -> None:
        self.run(1.0)
        while not self.machine.settled(self.now) and seconds > 0:
            self.run(0.5)
            seconds -= 0.5

    def observe(self) -> None:
        for name in self.machine.names:
            self.machine.status(name, self.sim.statuses(name), self.now)
        if self.sees:
            paths = {f"/{name}{suffix}" for name in NAMES for suffix in ("", "x")}
            self.machine.disk({path: self.sim.look(path) for path in paths})
        if self.call is not None:
            request, deadline = self.call
            if request.answer is not None:
                self.answer(*request.answer)
            elif self.now >= deadline:
                self.answer("DEADLINE_EXCEEDED", "")

    def answer(self, code: str, text: str) -> None:
        self.call = None
        self.machine.answered(code, text, self.now)

    def command(self) -> None:
        call = self.machine.next_call(self.now)
        if call is None:
            return
        assert self.call is None, "two calls at once"
        before = set(self.sim.configured)
        asked = {one.name for one in call.config.model_config_list.config}
        if not self.sim.queue:
            # What is added again has ended before.
            for name in asked - before:
                live = [one for one in self.sim.statuses(name) if one.state != "END"]
                assert not live, f"{name} is added again, but {live}"
                path = next(one.base_path for one in call.config.model_config_list.config if one.name == name)
                assert self.sim.disk.get(path) or not self.sees, f"{name} is asked for, but not there"
        self.call = self.sim.ask(call.config), self.now + call.deadline
        if self.call[0].answer is None:
            self.queued += 1

    def restart(self) -> None:
        if any(one.base_path not in self.sim.disk for one in self.sim.present.values()):
            return  # it would not open its port
        self.sim.start()
        self.down = 5
        for _ in range(100):
            self.sim.step()
        if self.call is not None:
            self.answer("UNAVAILABLE", "Socket closed")
        self.machine.lost()

    @property
    def stuck(self) -> bool:
        """A path went missing after it was seen, so the server takes up nothing new, or waits for ever."""
        configured = self.sim.configured.values()
        return bool(self.sim.queue) or any(one.base_path not in self.sim.disk for one in configured)

    def results(self) -> dict[str, Result]:
        return self.machine.results(self.now)


PATHS = st.sampled_from([f"/{name}" for name in NAMES])
MODELS = st.fixed_dictionaries(
    {
        name: st.none()
        | st.builds(
            lambda name, moved, versions, labels: model(
                name, f"/{name}x" if moved else "", versions, tuple(one for one in labels if one in versions)
            ),
            st.just(name),
            st.sampled_from([False, False, False, True]),
            st.sampled_from([(), (1,), (2,), (1, 2), (3,), (2, 3)]),
            st.sampled_from([(), (1,), (2,), (1, 2)]),
        )
        for name in NAMES
    }
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("want"), MODELS),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 0.4, 1.0, 3.0, 12.0])),
        st.tuples(st.just("missing"), PATHS),
        st.tuples(st.just("there"), PATHS, st.sets(st.integers(1, 3))),
        st.tuples(st.just("broken"), PATHS, st.integers(1, 3)),
        st.tuples(st.just("busy"), st.sampled_from([0.0, 1.5])),
        st.tuples(st.just("restart"), st.none()),
    ),
    min_size=2,
    max_size=14,
)


def apply(run: Run, event: tuple[Any, ...]) -> None:
    match event:
        case ("want", models):
            run.machine.want(config(*(one for one in models.values() if one is not None)))
        case ("wait", seconds):
            run.run(seconds)
        case ("missing", path):
            run.sim.disk.pop(path, None)
        case ("there", path, versions):
            run.sim.disk[path] = set(versions)
        case ("broken", path, version):
            run.sim.broken.add((path, version))
        case ("busy", seconds):
            run.sim.busy = seconds
        case _:
            run.restart()


@settings(max_examples=examples(25))
@given(EVENTS, MODELS, st.booleans())
def test_it_ends_where_it_is_wanted_or_says_why_not(events: list[Any], last: dict[str, Any], sees: bool) -> None:
    run = Run(sees=sees, present=(model("a"),))
    run.run(2.0)
    for event in events:
        apply(run, event)
    apply(run, ("want", last))
    run.until_settled(60.0)
    if sees:
        judge_all(run, last, healed=False)
    # Whatever was missing comes in the end.
    for name in NAMES:
        run.sim.disk[f"/{name}"] = run.sim.disk[f"/{name}x"] = {1, 2, 3}
    run.run(1.0)
    run.until_settled()
    judge_all(run, last, healed=True)


def judge_all(run: Run, wanted: dict[str, Any], *, healed: bool) -> None:
    results = run.results()
    for name, want in wanted.items():
        available = run.sim.available(name)
        if want is None:
            assert not available or not healed, f"{name} is not wanted: {run.sim.statuses(name)}, {results}"
            continue
        result = results[name]
        if result.progress is Progress.DONE:
            policy = read_model(want).policy or Policy()
            chosen = policy.choose(run.sim.disk.get(want.base_path, available))
            assert available == chosen, f"{name}: {available} and not {chosen}"
            assert run.sim.labels.get(name, {}) == dict(want.version_labels)
        elif healed:
            assert result.name in ("LoadFailed", "SameVersionOtherPath", "LabelBeforeAvailable"), f"{name}: {result}"
            if result.name == "LoadFailed":
                assert any(one.error for one in run.sim.statuses(name))
        else:
            assert result.name, f"{name}: {result}"
            asked = set(want.model_version_policy.specific.versions)
            if not run.sim.broken and not run.stuck and asked <= run.sim.disk.get(want.base_path, set()):
                # Others' traps are not its own.
                assert result.name in ("SameVersionOtherPath", "NoVersions"), f"{name}: {result}"
