"""The threads around the lifecycle: the 100 ms manager, the file-system poll, loads with their retries, unloads.

Invariant: the lock is never held while a file is read, a model loads or runs, so status and predictions don't wait
for either. A version is freed only when no request that has acquired it is still under way.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from model_server import source
from model_server.errors import Code, ServingError
from model_server.lifecycle import Action, Event, Lifecycle, Load, Unload
from model_server.saved_model import SavedModel

log = logging.getLogger(__name__)
TICK = 0.1  # seconds; aspired_versions_manager.h

Seen: TypeAlias = dict[str, dict[int, Event]]
Loader: TypeAlias = Callable[[Path], SavedModel]
"""Makes the model of one version folder ready to answer. Raises ServingError."""


@dataclass(frozen=True, slots=True)
class ManagerOptions:
    """Seconds where nothing else is said; the fields are TF Serving's flags."""

    file_system_poll_wait: float = 1.0
    max_num_load_retries: int = 5
    load_retry_interval: float = 60.0
    num_load_threads: int = 0


@dataclass(slots=True)
class _Serving:
    model: SavedModel
    requests: int = 0


class Manager:
    """All servables of one server, loaded and unloaded as `set_sources` asks."""

    def __init__(self, options: ManagerOptions, load: Loader) -> None:
        self._options, self._load = options, load
        self._changed = threading.Condition()
        self._statuses: Seen = {}
        self._watchers: list[Seen] = []
        self._serving: dict[str, dict[int, _Serving]] = {}
        self._lifecycle = Lifecycle(self._publish)
        self._sources: tuple[source.ModelSource, ...] = ()
        self._load_slots: threading.Semaphore | None = None
        self._started = False

    # What it is asked for.

    @property
    def sources(self) -> tuple[source.ModelSource, ...]:
        """The models configured now."""
        return self._sources

    def set_sources(self, sources: Collection[source.ModelSource]) -> None:
        """Configure exactly these models. Dropped ones start to unload at once, the rest waits for the next poll."""
        with self._changed:
            for dropped in {one.name for one in self._sources} - {one.name for one in sources}:
                self._lifecycle.aspire(dropped, {})
            self._sources = tuple(sources)
        if not self._started:
            self._started = True
            threading.Thread(target=self._every, args=(TICK, self._manage), name="manager", daemon=True).start()
            wait = self._options.file_system_poll_wait
            if wait >= 0:
                threading.Thread(target=self._every, args=(wait, self._poll), name="file system", daemon=True).start()

    def set_load_threads(self, count: int) -> None:
        """How many loads and unloads may run at once; 0: one at a time, and the manager does nothing else."""
        self._load_slots = threading.Semaphore(count) if count > 0 else None

    # What it tells.

    def statuses(self, model: str) -> dict[int, Event]:
        """The last event of every version that was ever aspired."""
        with self._changed:
            return dict(self._statuses.get(model, {}))

    @contextlib.contextmanager
    def watch(self) -> Iterator[Seen]:
        """Collect the last events from now on, without those of the past."""
        seen: Seen = {}
        with self._changed:
            self._watchers.append(seen)
        try:
            yield seen
        finally:
            with self._changed:
                # Two watches may hold equal events.
                self._watchers = [other for other in self._watchers if other is not seen]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Block, without a limit, until a condition over events holds."""
        with self._changed:
            self._changed.wait_for(condition)

    @contextlib.contextmanager
    def acquire(self, model: str, version: int | None) -> Iterator[tuple[int, SavedModel]]:
        """Hold a version, None for the highest that serves, for one request. Raises ServingError."""
        with self._changed:
            versions = self._serving.get(model)
            chosen = max(versions, default=-1) if versions and version is None else version
            if versions is None or chosen is None or chosen not in versions:
                asked = f"Latest({model})" if version is None else f"Specific({model}, {version})"
                raise ServingError(Code.NOT_FOUND, f"Servable not found for request: {asked}")
            held = versions[chosen]
            held.requests += 1
        try:
            yield chosen, held.model
        finally:
            with self._changed:
                held.requests -= 1
                if not held.requests:
                    self._changed.notify_all()

    # What it does by itself.

    def _publish(self, event: Event) -> None:
        for seen in (self._statuses, *self._watchers):
            seen.setdefault(event.model, {})[event.version] = event
        self._changed.notify_all()
        log.info(
            "servable {name: %s version: %d}: %s%s",
            *(event.model, event.version, event.state.name, f", {event.error}" if event.error else ""),
        )

    def _every(self, seconds: float, step: Callable[[], None]) -> None:
        while True:
            began = time.monotonic()
            step()
            if not seconds:
                return
            time.sleep(max(0.0, began + seconds - time.monotonic()))

    def _poll(self) -> None:
        sources = self._sources
        try:
            found = source.poll(sources)
        except ServingError as error:
            log.error("FileSystemStoragePathSource encountered a filesystem access error: %s", error.message)
            return
        with self._changed:
            if self._sources == sources:
                self._aspire(found)

    def _aspire(self, found: Mapping[str, Mapping[int, Path]]) -> None:
        for model, versions in found.items():
            self._lifecycle.aspire(model, versions)

    def _manage(self) -> None:
        with self._changed:
            action = self._lifecycle.tick()
        if action is None:
            return
        slots = self._load_slots
        if slots is None:
            self._carry_out(action)
        else:
            threading.Thread(target=self._in_slot, args=(slots, action), name="load", daemon=True).start()

    def _in_slot(self, slots: threading.Semaphore, action: Action) -> None:
        with slots:
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Load):
            self._run_load(action)
        else:
            self._run_unload(action)

    def _run_load(self, action: Load) -> None:
        failed: ServingError | None = None
        for attempt in range(self._options.max_num_load_retries + 1):
            if attempt:
                # Not cut short when the version is no longer wanted: TF Serving's isn't either.
                time.sleep(self._options.load_retry_interval)
                if not self._lifecycle.is_aspired(action.model, action.version):
                    break
            try:
                model = self._load(action.path)
            except ServingError as error:
                failed = error
                log.warning("servable {name: %s version: %d}: load failed: %s", action.model, action.version, error)
                continue
            except Exception as error:
                # Whatever it is, the manager's thread has to live on for the other models.
                failed = ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")
                log.exception("servable {name: %s version: %d}: load failed", action.model, action.version)
                continue
            with self._changed:
                self._serving.setdefault(action.model, {})[action.version] = _Serving(model)
                self._lifecycle.loaded(action.model, action.version)
            return
        with self._changed:
            self._lifecycle.loaded(action.model, action.version, failed)

    def _run_unload(self, action: Unload) -> None:
        with self._changed:
            versions = self._serving[action.model]
            gone = versions.pop(action.version)
            if not versions:
                del self._serving[action.model]
            self._changed.wait_for(lambda: not gone.requests)
        gone.model.close()
        with self._changed:
            self._lifecycle.unloaded(action.model, action.version)
