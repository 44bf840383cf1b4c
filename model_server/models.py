"""The server's configuration in force: which models, which labels, and how a reload changes them.

Invariant: one reload at a time (TF Serving's `config_mu_`). The traps are TF Serving's, on purpose: a reload waits
without a limit for a new model, and one that fails half-way stays in force. Source: model_servers/server_core.cc.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from model_server.errors import Code, ServingError, invalid
from model_server.lifecycle import Event, State
from model_server.manager import Manager, ManagerOptions, Seen
from model_server.saved_model import SavedModel
from model_server.source import ModelSource, read_policy

log = logging.getLogger(__name__)
PLATFORM = "tensorflow"


class _InTurn:
    """A lock that is given in the order in which it was asked for. The reloads behind a blocked one are carried out in
    turn, and a plain Lock makes no promise."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked = self._given = 0

    def __enter__(self) -> None:
        with self._changed:
            turn = self._asked
            self._asked += 1
            self._changed.wait_for(lambda: self._given == turn)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._given += 1
            self._changed.notify_all()


class Models:
    """What ModelService and PredictionService work on."""

    def __init__(
        self, manager: Manager, options: ManagerOptions, *, allow_labels_for_unavailable: bool = False
    ) -> None:
        self.manager = manager
        self._options = options
        self._allow_labels = allow_labels_for_unavailable
        self._mutex = _InTurn()
        self._labels: Mapping[str, Mapping[str, int]] = {}
        self._platforms: dict[str, str] = {}

    def start(self, config: Any) -> None:
        """Take the first configuration; return when the newest version of every model is AVAILABLE.

        Loads run in parallel until then. Raises ServingError if one fails with its retries used up.
        """
        self.manager.set_load_threads(4 * (os.cpu_count() or 1))
        self._reload(config, "servable")
        self.manager.set_load_threads(self._options.num_load_threads)

    def reload(self, config: Any) -> None:
        """Take another ModelServerConfig. Blocks for new models, for ever if they never appear. Raises ServingError."""
        self._reload(config, "model")

    def _reload(self, config: Any, noun: str) -> None:
        with self._mutex:
            models = list(config.model_config_list.config)
            _validate(models)
            for model in models:
                if self._platforms.get(model.name, model.model_platform) != model.model_platform:
                    raise ServingError(
                        Code.FAILED_PRECONDITION, f"Illegal to change a model's platform. For model {model.name}"
                    )
            # From here on it is the configuration in force, whatever fails.
            self._platforms = {model.name: model.model_platform for model in models}
            self._assign_labels(models)
            for model in models:
                _check_platform(model)
            sources = [ModelSource(model.name, Path(model.base_path), read_policy(model)) for model in models]
            new = {one.name for one in sources} - {one.name for one in self.manager.sources}
            with self.manager.watch() as seen:
                self.manager.set_sources(sources)
                _wait_until_available(self.manager, new, seen, noun)

    def _assign_labels(self, models: Collection[Any]) -> None:
        labels: dict[str, dict[str, int]] = {}
        for model in models:
            states = self.manager.statuses(model.name)
            known = self._labels.get(model.name, {})
            for label, version in sorted(model.version_labels.items()):
                available = version in states and states[version].state is State.AVAILABLE
                if not available and (not self._allow_labels or label in known):
                    raise ServingError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {model.name}, which is not currently "
                        "available for inference",
                    )
                labels.setdefault(model.name, {})[label] = version
        self._labels = labels

    @contextlib.contextmanager
    def acquire(self, request: Any) -> Iterator[tuple[int, SavedModel]]:
        """Hold the servable that a request's model_spec asks for. Raises ServingError with TF Serving's texts."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        spec = request.model_spec
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        version: int | None = None
        match spec.WhichOneof("version_choice"):
            case "version":
                version = spec.version.value
            case "version_label":
                version = self._labels.get(spec.name, {}).get(spec.version_label)
                if version is None:
                    raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        with self.manager.acquire(spec.name, version) as held:
            yield held

    def statuses(self, request: Any) -> list[Event]:
        """The versions that a GetModelStatusRequest asks for, newest first; a label is ignored. Raises ServingError."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        spec = request.model_spec
        states = self.manager.statuses(spec.name)
        if spec.WhichOneof("version_choice") == "version":
            if spec.version.value not in states:
                raise ServingError(Code.NOT_FOUND, f"Could not find version {spec.version.value} of model {spec.name}")
            return [states[spec.version.value]]
        if not states:
            raise ServingError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        return [states[version] for version in sorted(states, reverse=True)]


def _validate(models: Collection[Any]) -> None:
    names: set[str] = set()
    for model in models:
        if model.name in names:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        names.add(model.name)
    for model in models:
        if not Path(model.base_path).is_absolute():
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )


def _check_platform(model: Any) -> None:
    if not model.model_platform and not model.model_type:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform, "
            f"model name is {model.name}"
        )
    if model.model_platform and model.model_platform != PLATFORM:
        raise invalid(f"Model {model.name} requests unsupported platform {model.model_platform}")


def _wait_until_available(manager: Manager, models: Collection[str], seen: Seen, noun: str) -> None:
    def newest(model: str) -> Event | None:
        versions = seen.get(model)
        return versions[max(versions)] if versions else None

    ended: dict[str, Event] = {}

    def decided() -> bool:
        for model in models:
            event = newest(model)
            if model not in ended and event is not None and event.state in (State.AVAILABLE, State.END):
                ended[model] = event
        return len(ended) == len(models)

    manager.wait_for(decided)
    failed = [event for _, event in sorted(ended.items()) if event.state is State.END]
    if failed:
        items = "".join(
            f"{{{{name: {event.model} version: {event.version}}}"
            + (f" due to error: {event.error}" if event.error else "")
            + "}, "
            for event in failed
        )
        raise ServingError(Code.UNKNOWN, f"{len(failed)} {noun}(s) did not become available: {{{items}}}")
