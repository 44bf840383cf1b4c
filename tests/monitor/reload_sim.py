"""A small model of how TensorFlow Serving carries out reloads (facts 3.3 to 3.6), for random tests: one mutex, new
models waited for, a poll every second that ends at the first missing path, one load at a time, END that stays. The
lifecycle itself is model_server's own."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model_server.errors import Code, ServingError
from model_server.lifecycle import Event, Lifecycle, Load, State, Unload
from monitor.disk import Look
from monitor.model_config import read_model
from monitor.pb import tfs_pb2 as tfs
from monitor.reload_step import Statuses
from monitor.servables import Policy, VersionStatus
from registry.records import ServableState

STEP = 0.1
LONG = 3.0
"""Seconds that a broken version is tried again."""


@dataclass(slots=True)
class Request:
    config: tfs.ModelServerConfig
    new: frozenset[str] = frozenset()
    started: bool = False
    answer: tuple[str, str] | None = None
    seen: dict[str, dict[int, Event]] = field(default_factory=dict)


class Sim:
    """`disk`: base path -> versions; `broken`: (base path, version); `busy`: seconds that an unload takes."""

    def __init__(self, present: Mapping[str, tfs.ModelConfig], disk: dict[str, set[int]]) -> None:
        self.present, self.disk = dict(present), disk
        self.broken: set[tuple[str, int]] = set()
        self.busy = 0.0
        self.start()

    def start(self) -> None:
        self.steps = 0
        self.states: dict[str, dict[int, Event]] = {}
        self.lifecycle = Lifecycle(self._publish)
        self.queue: deque[Request] = deque()
        self.loaded: dict[tuple[str, int], str] = {}
        self.labels: dict[str, dict[str, int]] = {}
        self.configured: dict[str, tfs.ModelConfig] = dict(self.present)
        self.doing: tuple[int, Load | Unload] | None = None

    def statuses(self, model: str) -> Statuses:
        return tuple(
            VersionStatus(one.version, ServableState[one.state.name], str(one.error) if one.error else "")
            for one in sorted(self.states.get(model, {}).values(), key=lambda one: -one.version)
        )

    def available(self, model: str) -> set[int]:
        return {version for version, one in self.states.get(model, {}).items() if one.state is State.AVAILABLE}

    def paths(self, model: str) -> set[str]:
        """The folders from which its versions were loaded."""
        return {self.loaded[model, version] for version in self.available(model)}

    def look(self, path: str) -> Look:
        return Look(True, frozenset(self.disk[path])) if path in self.disk else Look(there=False)

    def ask(self, config: tfs.ModelServerConfig) -> Request:
        request = Request(config)
        self.queue.append(request)
        self._serve_queue()
        return request

    def step(self) -> None:
        """A tenth of a second."""
        self.steps += 1
        if self.steps % 10 == 0:
            self._poll()
        if self.doing is not None and self.steps >= self.doing[0]:
            self._end(self.doing[1])
            self.doing = None
        if self.doing is None:
            action = self.lifecycle.tick()
            if action is not None:
                self.doing = self.steps + self._steps_of(action), action
        self._serve_queue()

    def _steps_of(self, action: Load | Unload) -> int:
        if isinstance(action, Unload):
            return round(self.busy / STEP)
        return round(LONG / STEP) if self._is_broken(action) else 2

    def _is_broken(self, action: Load) -> bool:
        return (str(action.path.parent), action.version) in self.broken

    def _end(self, action: Load | Unload) -> None:
        if isinstance(action, Unload):
            self.lifecycle.unloaded(action.model, action.version)
        else:
            error = ServingError(Code.DATA_LOSS, "broken") if self._is_broken(action) else None
            self.loaded[action.model, action.version] = str(action.path.parent)
            self.lifecycle.loaded(action.model, action.version, error)

    def _publish(self, event: Event) -> None:
        self.states.setdefault(event.model, {})[event.version] = event
        if self.queue and event.model in self.queue[0].new:
            self.queue[0].seen.setdefault(event.model, {})[event.version] = event

    def _poll(self) -> None:
        models = [read_model(config) for config in self.configured.values()]
        if any(model.base_path not in self.disk for model in models):
            return
        for model in models:
            chosen = (model.policy or Policy()).choose(self.disk[model.base_path])
            self.lifecycle.aspire(model.name, {one: Path(model.base_path, str(one)) for one in chosen})

    def _serve_queue(self) -> None:
        while self.queue:
            head = self.queue[0]
            if not head.started:
                head.started = True
                head.answer = self._begin(head)
            if head.answer is None and all(self._decided(head, name) for name in head.new):
                failed = [name for name in head.new if head.seen[name][max(head.seen[name])].state is State.END]
                head.answer = ("UNKNOWN", f"{failed} did not become available") if failed else ("OK", "")
            if head.answer is None:
                return
            self.queue.popleft()

    @staticmethod
    def _decided(request: Request, name: str) -> bool:
        versions = request.seen.get(name)
        return bool(versions) and versions[max(versions)].state in (State.AVAILABLE, State.END)

    def _begin(self, request: Request) -> tuple[str, str] | None:
        models = {one.name: one for one in request.config.model_config_list.config}
        labels: dict[str, dict[str, int]] = {}
        for model in models.values():
            for label, version in model.version_labels.items():
                if version not in self.available(model.name):
                    return "FAILED_PRECONDITION", f"Request to assign label to version {version} of {model.name}"
                labels.setdefault(model.name, {})[label] = version
        self.labels = labels
        for model in models.values():
            if model.model_platform != "tensorflow":
                return "INVALID_ARGUMENT", f"Model {model.name} requests unsupported platform"
        for dropped in self.configured.keys() - models.keys():
            self.lifecycle.aspire(dropped, {})
        request.new = frozenset(models.keys() - self.configured.keys())
        self.configured = models
        return None if request.new else ("OK", "")
