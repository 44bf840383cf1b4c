"""`modelplane up`: the local stack from its first process to its last.

Invariant: whatever goes wrong, or whoever asks for it, all children are ended in order before `run` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import quote

from control_plane.envoy_files import render_bootstrap
from modelplane.errors import INTERRUPTED, UserError
from modelplane.fleet import Fleet, Picture, State
from modelplane.local import programs
from modelplane.local.checks import connects, http_ok
from modelplane.local.config import UpConfig
from modelplane.local.folder import Stack, StateFolder
from modelplane.local.instance import STAGE as INSTANCE_STAGE
from modelplane.local.instance import Instance, ManagedInstance
from modelplane.local.models import Source, example_models, examples_folder, examples_there
from modelplane.local.policies import write_policies
from modelplane.local.ports import Wanted, assign
from modelplane.local.processes import Children, Ended, Program, become_subreaper
from modelplane.local.progress import Progress
from modelplane.local.rivals import Rivals
from modelplane.screen import Screen
from modelplane.table import changes, table
from monitor.memory import memory_beside
from registry.claims import Claim
from registry.etcd import EtcdClient, EtcdConfig
from registry.follow import follow
from registry.keys import Keyspace
from registry.records import InstanceState

ETCD, CONTROL_PLANE, ENVOY = "etcd", "control-plane", "envoy"
_STAGES = {ENVOY: INSTANCE_STAGE + 1, CONTROL_PLANE: INSTANCE_STAGE + 2, ETCD: INSTANCE_STAGE + 3}
_START_LIMIT = 60.0
_ETCD_LIMIT = 15.0
_SETTLE_LIMIT = 180.0
_CONVERGE_LIMIT = 15.0
_FRAME = 0.1
_LOST_LEASES = 1.0  # how often to see whether a lost instance is to be given up, in seconds


def choose_ports(config: UpConfig) -> dict[str, int]:
    """All ports of the stack by name, checked. Raises UserError."""
    ports = config.ports
    wanted = [
        Wanted("grpc", "--grpc-port", ports.grpc, config.listen),
        Wanted("rest", "--rest-port", ports.rest, config.listen),
        Wanted("admin", "--admin-port", ports.admin),
        Wanted("xds", "--xds-port", ports.xds),
        Wanted("http", "--http-port", ports.http),
    ]
    if config.etcd is None:
        wanted.append(Wanted("etcd", "--etcd-port", ports.etcd))
        wanted.append(Wanted("etcd-peer", "", 0))
    return assign(wanted)


def _failure(task: asyncio.Task[None]) -> Exception | None:
    error = task.exception()
    if error is None or isinstance(error, Exception):
        return error
    raise error


class LocalStack:
    """One run. Without `models` the examples are served; `passed_on` are flags that our own children get as they are.

    Raises UserError for what is missing or busy, before anything is started.
    """

    def __init__(
        self,
        config: UpConfig,
        models: tuple[Source, ...],
        folder: StateFolder,
        screen: Screen,
        passed_on: tuple[str, ...] = (),
    ) -> None:
        self._config = config
        self._folder = folder
        self._screen = screen
        self._progress = Progress(screen)
        self._models = models or example_models(folder.models)
        self._examples = not models
        self._server = programs.model_server(config.server)
        self._envoy = programs.require_binary("envoy")
        self._etcd = "" if config.etcd else programs.require_binary("etcd", "; or use one that runs, with --etcd")
        self._trained = not self._examples or examples_there(folder.models)
        if not self._trained:
            programs.require_modules(
                "the examples", ["tensorflow", "sklearn"], "; or give your own with --model NAME=PATH"
            )
        self._ports: Mapping[str, int] = choose_ports(config)
        self._keyspace = Keyspace(config.prefix)
        address = config.etcd or f"127.0.0.1:{self._ports['etcd']}"
        monitoring = folder.path / "monitoring.config"
        self._shared = programs.Shared(address, self._keyspace.prefix, passed_on, monitoring)
        self._names = config.names
        self._children = Children(self._child_ended)
        self._rivals = Rivals(self._keyspace, config.names, self._is_ours)
        self._fleet = Fleet(self._keyspace)
        self._picture = Picture()
        self._changed = asyncio.Event()
        self._fatal: UserError | None = None
        self._starting = True
        self._asked: signal.Signals | None = None

    async def run(self) -> int:
        """Start everything, show it, and end it on SIGINT or SIGTERM. Raises UserError when it can't be started."""
        become_subreaper()
        loop = asyncio.get_running_loop()
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            children = group.create_task(self._children.run(), name="children")
            main = asyncio.create_task(self._main(), name="main")
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._stop_asked, number, main)
            try:
                await asyncio.wait([main])
                failure = None if main.cancelled() else _failure(main)
            finally:
                self._children.stop()
            await self._show_stopping(children)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
        if failure is not None:
            raise failure
        return INTERRUPTED if self._asked is signal.SIGINT else 0

    def _stop_asked(self, number: signal.Signals, main: asyncio.Task[None]) -> None:
        if self._asked is None:
            self._asked = number
            main.cancel()
        else:
            self._children.stop()

    async def _show_stopping(self, children: asyncio.Task[None]) -> None:
        self._screen.block([])
        shown: tuple[str, ...] = ()
        while not children.done():
            waiting = self._children.waiting_for
            if set(waiting) - set(shown):
                drain = " to finish their requests" if waiting[0] in self._names else ""
                self._screen.line(f"Ending: waiting for {', '.join(waiting)}{drain} (Ctrl-C: don't wait)")
            shown = waiting
            await asyncio.wait([children], timeout=_FRAME)
        self._screen.line("All processes have ended.")

    async def _main(self) -> None:
        """Everything but the end; ends only by being cancelled or with an exception."""
        self._screen.line(f"State, logs and models are in {self._folder.path}")
        # The client dials only once it is used; it has to outlive the tasks that use it.
        async with EtcdClient(EtcdConfig((self._shared.etcd,))) as client, asyncio.TaskGroup() as group:
            animation = group.create_task(self._animate(), name="animation")
            await self._start_core(client, group)
            await self._start_instances()
            self._starting = False
            animation.cancel()
            self._screen.block([])
            self._say_where()
            if self._examples and self._config.client and not self._config.manage:
                await self._run_client()
            await self._show_fleet()

    async def _start_core(self, client: EtcdClient, outer: asyncio.TaskGroup) -> None:
        async with asyncio.TaskGroup() as group:
            if not self._trained:
                group.create_task(self._train(), name="examples")
            with self._progress.step(ETCD) as step:
                step.note = self._shared.etcd
                await self._start_etcd()
                outer.create_task(self._follow(client), name="follow")
                try:
                    await self._until(lambda: self._picture.connected, "", _ETCD_LIMIT)
                except TimeoutError:
                    mend = "is it running there?" if self._config.etcd else f"see the logs in {self._folder.logs}"
                    raise UserError(
                        f"etcd at {self._shared.etcd} hasn't answered for {_ETCD_LIMIT:.0f} s; {mend}"
                    ) from None
            self._folder.announce(Stack(self._shared.etcd, self._keyspace.prefix, os.getpid()))
            await self._start_control_plane()
            await self._start_envoy()

    async def _start_etcd(self) -> None:
        if self._config.etcd is None:
            port, peer = self._ports["etcd"], self._ports["etcd-peer"]
            command = programs.etcd(self._etcd, self._folder.etcd, port, peer, durable=self._config.keep)
            self._add(ETCD, command, grace=5.0)
            await self._until(lambda: connects("127.0.0.1", port), "etcd to listen")

    async def _start_control_plane(self) -> None:
        with self._progress.step("control plane") as step:
            http = self._ports["http"]
            step.note = f"xDS 127.0.0.1:{self._ports['xds']}, http://127.0.0.1:{http}/metrics"
            self._add(CONTROL_PLANE, programs.control_plane(self._shared, self._ports, self._config.listen), grace=10.0)
            await self._until(lambda: http_ok("127.0.0.1", http, "/readyz"), "the control plane to be ready")

    async def _start_envoy(self) -> None:
        with self._progress.step("Envoy") as step:
            admin, grpc = self._ports["admin"], self._ports["grpc"]
            step.note = (
                f"gRPC {self._client_address('grpc')}, REST {self._client_address('rest')}, admin 127.0.0.1:{admin}"
            )
            bootstrap = self._folder.path / "envoy.yaml"
            bootstrap.write_text(
                render_bootstrap([f"127.0.0.1:{self._ports['xds']}"], admin=f"127.0.0.1:{admin}", node_id="local")
            )
            self._add(ENVOY, programs.envoy(self._envoy, bootstrap), grace=10.0)
            await self._until(lambda: http_ok("127.0.0.1", admin, "/ready"), "Envoy to be ready")
            await self._until(lambda: connects(self._reachable, grpc), "Envoy to listen for clients")

    async def _train(self) -> None:
        with self._progress.step("example models") as step:
            step.note = "training …"

            def said(line: str) -> None:
                step.details.append(line)
                step.note = line.partition(" (")[0]

            command = programs.python(examples_folder() / "train.py", str(self._folder.models))
            output = self._folder.logs / "examples.log"
            code = await self._children.run_once(command, output, said)
            if code != 0:
                raise UserError(f"the example models can't be made (exit code {code}); see {output}")
            step.note = str(self._folder.models)

    async def _start_instances(self) -> None:
        with self._progress.step("model servers") as step:
            kind = "the stand-in server" if self._server[0] != programs.find_binary("tensorflow_model_server") else ""
            if self._shared.monitoring:
                self._shared.monitoring.write_text(programs.MONITORING)
            if self._config.manage:
                write_policies(self._models, self._folder.policies)
            for name in self._names:
                self._children.add(self._instance(name).program(self._folder.logs))

            def settled() -> bool:
                step.note = self._loading_note()
                return not step.note

            try:
                await self._until(settled, "", _SETTLE_LIMIT)
            except TimeoutError:
                step.details.append(f"still not there after {_SETTLE_LIMIT:.0f} s: {self._loading_note()}")
            step.note = "waiting for Envoy to take their models over"
            try:
                await self._until(lambda: self._picture.converged, "", _CONVERGE_LIMIT)
            except TimeoutError:
                step.details.append(f"Envoy has not confirmed the models; see the logs in {self._folder.logs}")
            step.note = f"{len(self._names)} x {kind or self._server[0]}"

    def _instance(self, name: str) -> Instance | ManagedInstance:
        if not self._config.manage:
            return Instance(name, self._folder.instances, self._shared, self._server, self._models)
        memory = memory_beside(shared=True) // len(self._names)
        return ManagedInstance(name, self._shared, self._server, self._config.labels(name), memory)

    def _loading_note(self) -> str:
        """Which models some instance has neither ready nor given up; empty if there are none."""
        waiting = []
        if self._config.manage:
            instances = self._picture.instances
            there = [name for name, record in instances.items() if record.state is InstanceState.SERVING]
            waiting = [name for name in self._names if name not in there]
        for name in self._names if not self._config.manage else ():
            for model in self._models:
                held = self._picture.holdings(name, model.name)
                if not held or any(one.state in (State.LOADING, State.PROVING) for one in held):
                    waiting.append(f"{model.name} on {name}")
        return f"waiting for {', '.join(waiting[:3])}{', …' if len(waiting) > 3 else ''}" if waiting else ""

    def _say_where(self) -> None:
        state = "" if self._config.state == UpConfig().state else f" --state {programs.shown_path(self._folder.path)}"
        self._screen.lines(
            [
                "",
                "Point any TensorFlow Serving client here:",
                f"  gRPC      {self._client_address('grpc')}",
                f"  REST      http://{self._client_address('rest')}/v1/models/{quote(self._models[0].name, safe='')}",
                "Look inside:",
                f"  fleet     {programs.shown_binary('modelplane')} status{state}",
                *self._say_how(state),
                f"  Envoys    {programs.shown_binary('modelplane')} get envoys{state}",
                f"  metrics   http://127.0.0.1:{self._ports['http']}/metrics",
                f"  Envoy     http://127.0.0.1:{self._ports['admin']}",
                f"  registry  {programs.shown_binary('etcdctl')} --endpoints {self._shared.etcd} get --prefix "
                f"{shlex.quote(self._keyspace.prefix)}",
                "Ctrl-C ends all of it.",
                "",
            ]
        )

    def _say_how(self, state: str) -> list[str]:
        if not self._config.manage:
            return []
        policies = programs.shown_path(self._folder.policies)
        return [f"  models    {programs.shown_binary('modelplane')} apply -f {policies}{state}"]

    async def _run_client(self) -> None:
        if not all(
            any(row.model == model.name and row.served for row in self._picture.versions) for model in self._models
        ):
            self._screen.line("The example client is not run: not all examples are served.")
            return
        script, address = examples_folder() / "predict.py", f"{self._reachable}:{self._ports['grpc']}"
        self._screen.line(f"$ {programs.shown_python()} {programs.shown_path(script)} {address}")
        output = self._folder.logs / "client.log"
        self._screen.block(["(the client imports TensorFlow, which takes some seconds)"])
        code = await self._children.run_once(programs.python(script, address), output, self._screen.line)
        if code != 0:
            self._screen.line(f"The client ended with exit code {code}; see {programs.shown_path(output)}")
        self._screen.block([])
        self._screen.line()

    async def _show_fleet(self) -> None:
        """The table on a terminal, a line per change otherwise; for ever."""
        shown = Picture()
        while True:
            picture = self._picture
            if not self._screen.live:
                now = time.strftime("%H:%M:%S")
                self._screen.lines([f"{now} {line}" for line in changes(shown, picture)])
            self._screen.block(table(picture, self._screen.width - 1))
            shown = picture
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOST_LEASES):
                    await self._changed.wait()
            self._changed.clear()
            await asyncio.sleep(_FRAME)
            self._picture = self._fleet.picture(time.monotonic())

    async def _follow(self, client: EtcdClient) -> None:
        async for update in follow(client, self._keyspace.prefix):
            now = time.monotonic()
            self._fleet.apply(update, now)
            for line in self._rivals.apply(update):
                self._screen.line(f"{time.strftime('%H:%M:%S')} {line}")
            self._picture = self._fleet.picture(now)
            self._changed.set()

    def _is_ours(self, claim: Claim) -> bool:
        return claim.host == socket.gethostname() and claim.pid in self._children.started

    async def _animate(self) -> None:
        while True:
            self._progress.draw()
            await asyncio.sleep(_FRAME)

    async def _until(
        self, condition: Callable[[], bool | Awaitable[bool]], what: str, limit: float = _START_LIMIT
    ) -> None:
        """Wait for a condition. Raises UserError when a process that everything stands on dies meanwhile, or after
        `limit` seconds; without a text for `what`, TimeoutError."""
        deadline = time.monotonic() + limit
        while True:
            if self._fatal is not None:
                raise self._fatal
            value = condition()
            if value if isinstance(value, bool) else await value:
                return
            if time.monotonic() > deadline:
                if not what:
                    raise TimeoutError
                raise UserError(f"waited {limit:.0f} s for {what}; see the logs in {self._folder.logs}")
            await asyncio.sleep(0.05)

    def _add(self, name: str, command: list[str], *, grace: float) -> None:
        log = self._folder.logs / f"{name}.log"
        self._children.add(Program(name, lambda: command, log, _STAGES[name], grace, programs.QUIET))

    def _child_ended(self, ended: Ended) -> None:
        if self._starting and ended.name in _STAGES:
            tail = f": {ended.tail[-1]}" if ended.tail else ""
            self._fatal = UserError(f"{ended.name} {ended.how}{tail} (log: {ended.log})")
            return
        said = f"{time.strftime('%H:%M:%S')} {ended.name} {ended.how}; it is started again in {ended.restart_in:g} s"
        log = programs.shown_path(ended.log)
        if ended.tail:
            self._screen.lines([f"{said}. The end of {log}:", *(f"    {line}" for line in ended.tail)])
        else:
            self._screen.line(f"{said} (log: {log})")

    @property
    def _reachable(self) -> str:
        """The address at which a client on this machine reaches Envoy."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._config.listen, self._config.listen)

    def _client_address(self, port: str) -> str:
        host = self._config.listen
        return f"[{host}]:{self._ports[port]}" if ":" in host else f"{host}:{self._ports[port]}"
