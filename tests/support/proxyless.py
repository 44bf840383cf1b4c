"""A gRPC client without a proxy: grpcio's own xDS client, in a child process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from control_plane.grpc_bootstrap import render_grpc_bootstrap


class ProxylessClient:
    """Requests to one target. `async with` starts the child, and ends it by closing its stdin. `options`: of its
    channel, as NAME=NUMBER."""

    def __init__(self, folder: Path, target: str, *control_planes: str, options: tuple[str, ...] = ()) -> None:
        self._arguments = (target, *options)
        self._bootstrap = folder / "xds.json"
        self._bootstrap.write_text(render_grpc_bootstrap(control_planes))
        self._log = folder / "proxyless.log"

    async def __aenter__(self) -> ProxylessClient:
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.support.proxyless_child", *self._arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=64 << 20,
                env={**os.environ, "GRPC_XDS_BOOTSTRAP": str(self._bootstrap), "GRPC_VERBOSITY": "ERROR"},
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    async def do(self, name: str, **arguments: Any) -> Any:
        """A command of proxyless_child.Client; its result."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if isinstance(body := arguments.get("body"), bytes):
            arguments["body"] = body.hex()
        self.process.stdin.write(json.dumps({"do": name, **arguments}).encode() + b"\n")
        await self.process.stdin.drain()
        line = await self.process.stdout.readline()
        assert line, self._log.read_text(errors="replace")[-3000:]
        return json.loads(line)
