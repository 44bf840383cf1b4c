"""Cheap instances with real monitors, drained again and again: `python -m bench.drain.instances` (see `parser`).

Each instance answers Predict after as many milliseconds as the request's header `delay-ms` says. It is drained by the
monitor's own code, as by SIGTERM (`stop`), or by the commands' as by `modelplane drain --model` (`model`), and comes
back. It is strict: a request that is in flight when the drain is over, or comes later, is a fault. One line of JSON
for each drain.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import grpc
import grpc.aio

from modelplane.access import FleetConfig
from modelplane.draining import Follower, Goal
from modelplane.wishes import wishes
from monitor.config import MonitorConfig
from monitor.instance import InstanceMonitor
from monitor.pb import tfs_pb2 as tfs
from monitor.plan import make_plan
from monitor.signals import StopOrders
from registry.drains import DrainRecord, DrainTarget
from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import Keyspace, PlaneKey
from registry.records import ServableState, decode_plane
from tests.support.waiting import eventually

DRAINED, OTHER = "drained", "other"
"""The models: the first is what `model` drains, while the second is served on."""
WAYS = ("stop", "model")


@dataclass
class Drained:
    """One drain; times in seconds. `seconds`: from the order to the end. `beyond`: from the end of the last request on
    the instance, or from the order if that came later. `in_flight`: requests at its beginning."""

    instance: str
    seconds: float
    beyond: float
    in_flight: int
    cut: int


class Server(grpc.GenericRpcHandler):
    """A model server of the models DRAINED and OTHER, version 1, of which DRAINED may be gone."""

    def __init__(self) -> None:
        self.port = 0
        self.active = 0
        self.served = 0
        self.late = 0
        self.gone = False
        self.last_end = 0.0

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        methods = {"GetModelStatus": self._status, "Predict": self._predict}
        handler = methods.get(handler_call_details.method.rpartition("/")[2])
        return None if handler is None else grpc.unary_unary_rpc_method_handler(handler)  # type: ignore[arg-type]

    async def _status(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        response = tfs.GetModelStatusResponse()
        state = tfs.ModelVersionStatus.State.Value(ServableState.AVAILABLE)
        response.model_version_status.add(version=1, state=state, status=tfs.StatusProto())
        return response.SerializeToString()

    async def _predict(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        delay = dict(context.invocation_metadata() or ()).get("delay-ms")
        if delay is None or tfs.PredictRequest.FromString(request).model_spec.name != DRAINED:
            return b""
        if self.gone:
            self.late += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "it was drained")
        self.active += 1
        self.served += 1
        try:
            await asyncio.sleep(int(delay) / 1000)
        finally:
            self.active -= 1
            self.last_end = time.monotonic()
        return b""


@dataclass
class Course:
    """The drains of one run. `together`: how many at most at one time."""

    etcd: str
    way: str
    left: int
    together: asyncio.Semaphore
    random: random.Random

    async def live(self, number: int) -> None:
        """One instance, until cancelled."""
        server = Server()
        await server.start()
        name = f"i{number}"
        config = MonitorConfig(
            target=f"127.0.0.1:{server.port}", model=(DRAINED, OTHER), instance=name, etcd=EtcdConfig((self.etcd,))
        )
        while True:
            async with EtcdClient(config.etcd) as etcd, asyncio.TaskGroup() as tasks:
                await self._life(name, server, config, etcd, tasks)

    async def _life(
        self, name: str, server: Server, config: MonitorConfig, etcd: EtcdClient, tasks: asyncio.TaskGroup
    ) -> None:
        orders, stopped = StopOrders(), asyncio.Event()

        async def stop() -> None:
            server.gone = True
            stopped.set()

        server.gone = False
        plan = make_plan(config, (), {})
        monitor = InstanceMonitor(config, plan, None, etcd, orders, new_server=True, stop_server=stop)
        running = tasks.create_task(monitor.run())
        while self.left > 0:
            await self._used(name, server)
            async with self.together:
                if self.left <= 0:
                    break
                self.left -= 1
                await (self._stop(name, server, orders, stopped) if self.way == "stop" else self._model(name, server))
            if self.way == "stop":
                await running
                return
        # All drains are done; the load is ended before the instances are.
        await running

    async def _used(self, name: str, server: Server) -> None:
        """Wait until it is in service again."""
        goal = server.served + self.random.randint(1, 20)
        await eventually(lambda: server.served >= goal or self.left <= 0, f"requests to reach {name}", 60)

    async def _stop(self, name: str, server: Server, orders: StopOrders, stopped: asyncio.Event) -> None:
        began, in_flight = time.monotonic(), server.active
        orders.stop.set()
        await stopped.wait()
        self._note(name, server, began, in_flight)

    async def _model(self, name: str, server: Server) -> None:
        wish = DrainRecord((DrainTarget(DRAINED),), by="bench")
        fleet = FleetConfig(etcd=EtcdConfig((self.etcd,)))
        async with wishes(fleet) as registry:
            began, in_flight = time.monotonic(), server.active
            await registry.change(name, lambda _: (wish, ()))
            await registry.follow(Follower(name, wish, Goal.DRAINED, registry.keyspace), lambda _: None)
            server.gone = True
            self._note(name, server, began, in_flight)
            # For whoever still comes.
            await asyncio.sleep(0.05)
            server.gone = False
            await registry.change(name, lambda _: (None, ()))

    def _note(self, name: str, server: Server, began: float, in_flight: int) -> None:
        ended = time.monotonic()
        row = Drained(name, ended - began, ended - max(began, server.last_end), in_flight, server.active + server.late)
        server.late = 0
        print(json.dumps(asdict(row)), flush=True)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="python -m bench.drain.instances", description=__doc__)
    flags.add_argument("--etcd", required=True)
    flags.add_argument("--way", choices=WAYS, required=True)
    flags.add_argument("--drains", type=int, required=True)
    flags.add_argument("--instances", type=int, required=True)
    flags.add_argument("--together", type=int, required=True)
    flags.add_argument("--seed", type=int, required=True)
    return flags


async def _settled(client: EtcdClient) -> bool:
    listing = await client.list(Keyspace().planes)
    keys = [(Keyspace().parse(entry.key), entry.value) for entry in listing.entries]
    records = [decode_plane(value) for key, value in keys if isinstance(key, PlaneKey)]
    return any(record.converged_revision and record.envoys for record in records)


async def _main(args: argparse.Namespace) -> None:
    course = Course(args.etcd, args.way, args.drains, asyncio.Semaphore(args.together), random.Random(args.seed))
    # A control plane claims nothing of convergence in its first seconds.
    async with EtcdClient(EtcdConfig((args.etcd,))) as client:
        await eventually(lambda: _settled(client), "the control plane to settle", 60)
    async with asyncio.TaskGroup() as tasks:
        for number in range(args.instances):
            tasks.create_task(course.live(number))


def main(argv: Sequence[str] | None = None) -> None:
    """Until it is ended by SIGTERM."""
    asyncio.run(_main(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
