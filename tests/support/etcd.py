"""A real single-member etcd for a test."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.support.processes import ChildProcess, binary, free_port, wait_for_port


class Etcd:
    """One member on free ports. It can be frozen, thawed, killed, and started again with or without its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self._peer_port = free_port(), free_port()
        self._generation = 0
        self.child = self._start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _start(self) -> ChildProcess:
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}"
        child = ChildProcess(
            [
                binary("etcd"),
                *("--name", "test", "--data-dir", str(self.folder / f"etcd-{self._generation}")),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"test={peer}"),
                *("--logger", "zap", "--log-level", "warn", "--unsafe-no-fsync"),
            ],
            self.folder / "etcd.log",
        )
        wait_for_port(self.port, child)
        return child

    def freeze(self) -> None:
        self.child.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.child.send(signal.SIGCONT)

    def kill(self) -> None:
        self.child.kill()

    def restart(self, *, empty: bool = False) -> None:
        """Start again after `kill`, with the old data or with none."""
        self._generation += 1 if empty else 0
        self.child = self._start()

    def close(self) -> None:
        self.child.send(signal.SIGCONT) if self.child.alive() else None
        self.child.stop()
