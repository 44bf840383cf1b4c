"""Cheap instances with real monitors, drained again and again: `python -m bench.drain.instances` (see `parser`).

Each instance answers Predict after as many milliseconds as the request's header `delay-ms` says. It is drained by the
monitor's own code, as by SIGTERM (`stop`), or by the commands' as by `modelplane drain --model` (`model`), and comes
back. It is strict: a request that is in flight when the drain is over, or comes later, is a fault. One line of JSON
for each drain, and one for each request that comes too late.
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
    the instance, or from the order if that came later. `in_flight`: requests at its beginning; `cut`: at its end."""

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
        self.drained = False
        self.gone_at: float | None = None
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
        if self.gone_at is not None:
            print(json.dumps({"late": time.monotonic() - self.gone_at}), flush=True)
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
class Order:
    """To drain: when it was given, and what was in flight then."""

    at: float = 0.0
    in_flight: int = 0

    def given(self, server: Server) -> None:
        """It is given now."""
        self.at, self.in_flight = time.monotonic(), server.active


@dataclass
class Course:
    """The drains of one run. `slots`: for those that drain, or are on their way back."""

    etcd: str
    way: str
    left: int
    slots: asyncio.Semaphore
    random: random.Random

    async def live(self, number: int) -> None:
        """One instance, until cancelled."""
        server = Server()
        await server.start()
        name = f"i{number}"
        config = MonitorConfig(
            target=f"127.0.0.1:{server.port}", model=(DRAINED, OTHER), instance=name, etcd=EtcdConfig((self.etcd,))
        )
        async with EtcdClient(config.etcd) as etcd:
            while True:
                async with asyncio.TaskGroup() as tasks:
                    await self._life(name, server, config, etcd, tasks)

    async def _life(
        self, name: str, server: Server, config: MonitorConfig, etcd: EtcdClient, tasks: asyncio.TaskGroup
    ) -> None:
        orders, order = StopOrders(), Order()

        async def stop() -> None:
            self._note(name, server, order)

        server.gone_at = None
        monitor = InstanceMonitor(config, make_plan(config, (), {}), None, etcd, orders, stop_server=stop)
        running = tasks.create_task(monitor.run())
        while True:
            await self._in_service(name, server)
            await self.slots.acquire()
            if self.left <= 0:
                # The load is ended before the instances are.
                self.slots.release()
                await running
            self.left -= 1
            order.given(server)
            if self.way == "stop":
                orders.stop.set()
                await running
                return
            await self._drain_model(name, server, order)

    async def _in_service(self, name: str, server: Server) -> None:
        """Wait until requests reach it again; then another one may drain, or soon none would be left."""
        goal = server.served + 1
        await eventually(lambda: server.served >= goal, f"requests to reach {name}", 120)
        if server.drained:
            server.drained = False
            self.slots.release()
        goal += self.random.randint(1, 20)
        await eventually(lambda: server.served >= goal, f"requests to reach {name}", 120)

    async def _drain_model(self, name: str, server: Server, order: Order) -> None:
        wish = DrainRecord((DrainTarget(DRAINED),), by="bench")
        async with wishes(FleetConfig(etcd=EtcdConfig((self.etcd,)))) as registry:
            await registry.change(name, lambda _: (wish, ()))
            await registry.follow(Follower(name, wish, Goal.DRAINED, registry.keyspace), lambda _: None)
            self._note(name, server, order)
            # For whoever still comes.
            await asyncio.sleep(0.05)
            server.gone_at = None
            await registry.change(name, lambda _: (None, ()))

    def _note(self, name: str, server: Server, order: Order) -> None:
        ended = server.gone_at = time.monotonic()
        server.drained = True
        seconds, beyond = ended - order.at, ended - max(order.at, server.last_end)
        print(json.dumps(asdict(Drained(name, seconds, beyond, order.in_flight, server.active))), flush=True)


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
