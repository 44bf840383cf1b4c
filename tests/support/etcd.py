"""A real etcd for a test: one member, or three."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import ChildProcess, binary, free_port, wait_for_port


@dataclass(frozen=True)
class Tls:
    """PEM files for a member that speaks TLS and wants a certificate of its clients."""

    ca_cert: Path
    cert: Path
    key: Path


class Operator:
    """What somebody with etcdctl may do to an etcd, by mistake or to mend it. All of it blocks."""

    def ctl(self, *arguments: str, text: str = "") -> str:
        """Run etcdctl, with `text` on its standard input; its output."""
        raise NotImplementedError

    def compact(self) -> None:
        """Forget all history up to now, and give the space back: whoever was away can't catch up by watching."""
        status = json.loads(self.ctl("endpoint", "status", "--write-out", "json"))
        self.ctl("compact", str(status[0]["Status"]["header"]["revision"]))
        self.ctl("defrag")

    def revoke_leases(self) -> int:
        """End every lease, and so delete what hangs on it; how many there were."""
        leases = [line.strip() for line in self.ctl("lease", "list").splitlines()[1:] if line.strip()]
        for lease in leases:
            # One may have ended by itself meanwhile.
            with contextlib.suppress(AssertionError):
                self.ctl("lease", "revoke", lease)
        return len(leases)

    def delete_all(self, prefix: str) -> None:
        """Delete every key under a prefix, leases or not."""
        self.ctl("del", "--prefix", prefix)

    def fill_up(self) -> None:
        """Write until etcd refuses for want of space (start it with a small --quota-backend-bytes)."""
        for number in range(1_000):
            try:
                self.ctl("put", f"/full/{number}", text="x" * 1_000_000)
            except AssertionError as error:
                if "database space exceeded" not in str(error):
                    raise
                return
        raise AssertionError("etcd took all that was written: is its quota too large?")

    def make_room(self) -> None:
        """Mend it as an operator does."""
        self.ctl("del", "--prefix", "/full/")
        self.compact()
        self.ctl("alarm", "disarm")


class Etcd(Operator):
    """One member on free ports. It can be frozen, thawed, killed, and started again with or without its data."""

    def __init__(self, folder: Path, *arguments: str, tls: Tls | None = None) -> None:
        self.folder = folder
        self.port, self._peer_port = free_port(), free_port()
        self._arguments, self._tls = arguments, tls
        self._generation = 0
        self.child = self._start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def endpoints(self) -> tuple[str, ...]:
        return (self.endpoint,)

    @property
    def _url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.endpoint}"

    @property
    def _data(self) -> Path:
        return self.folder / f"etcd-{self._generation}"

    def _start(self, wait: bool = True) -> ChildProcess:
        peer = f"http://127.0.0.1:{self._peer_port}"
        child = _launch(self.folder, "test", self._data, self._url, peer, f"test={peer}", self._options())
        wait_for_port(self.port, child)
        # It listens before it answers, and one that is killed in between never elects itself again.
        if wait:
            self._wait_until_it_leads(child)
        return child

    def _wait_until_it_leads(self, child: ChildProcess) -> None:
        deadline = time.monotonic() + 30
        command = [binary("etcdctl"), "--endpoints", self._url, *self._credentials(), "endpoint", "status"]
        while time.monotonic() < deadline and child.alive():
            result = subprocess.run([*command, "--command-timeout", "2s"], capture_output=True, text=True, timeout=10)
            if result.returncode == 0 and result.stdout.split(", ")[4] == "true":
                return
        raise AssertionError(f"etcd never led:\n{child.output[-4000:]}")

    def _credentials(self) -> list[str]:
        if self._tls is None:
            return []
        return ["--cacert", str(self._tls.ca_cert), "--cert", str(self._tls.cert), "--key", str(self._tls.key)]

    def _options(self) -> list[str]:
        options = list(self._arguments)
        if self._tls:
            options += ["--cert-file", str(self._tls.cert), "--key-file", str(self._tls.key)]
            options += ["--trusted-ca-file", str(self._tls.ca_cert), "--client-cert-auth"]
        return options

    def freeze(self) -> None:
        self.child.freeze()

    def thaw(self) -> None:
        self.child.thaw()

    def kill(self) -> None:
        self.child.kill()

    def restart(self, *, empty: bool = False, wait: bool = True) -> None:
        """Start again after `kill`, with the old data or with none; `wait` False: where etcdctl can't ask whether it
        leads, for want of a user."""
        self.child.stop()
        self._generation += 1 if empty else 0
        self.child = self._start(wait)

    def backup(self, path: Path) -> None:
        """Save a snapshot of the running member."""
        self.ctl("snapshot", "save", str(path))

    def restart_from(self, backup: Path) -> None:
        """Start again after `kill`, with what a backup holds."""
        self.child.stop()
        self._generation += 1
        peer = f"http://127.0.0.1:{self._peer_port}"
        run = ["etcdctl", "snapshot", "restore", str(backup), "--data-dir", str(self._data), "--name", "test"]
        run += ["--initial-cluster", f"test={peer}", "--initial-advertise-peer-urls", peer]
        _run(run)
        self.child = self._start()

    def ctl(self, *arguments: str, text: str = "") -> str:
        """Run etcdctl against this member; its output."""
        return _run(["etcdctl", "--endpoints", self._url, *self._credentials(), *arguments], text)

    def close(self) -> None:
        self.child.send(signal.SIGCONT) if self.child.alive() else None
        self.child.stop()


class EtcdCluster(Operator):
    """Three members on free ports, each of which can be killed and started again, frozen and thawed."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._folders = [folder / f"member-{index}" for index in range(3)]
        self._arguments = arguments
        self._generation = 0
        self._ports = [(free_port(), free_port()) for _ in self._folders]
        for member in self._folders:
            member.mkdir()
        # A member listens to clients only once it has joined the others.
        self.children = [self._launch(index) for index in range(3)]
        for index in range(3):
            self.wait(index)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"127.0.0.1:{client}" for client, _ in self._ports)

    @property
    def _members(self) -> str:
        return ",".join(f"m{number}=http://127.0.0.1:{peer}" for number, (_, peer) in enumerate(self._ports))

    def _data(self, index: int) -> Path:
        return self._folders[index] / f"data-{self._generation}"

    def _launch(self, index: int) -> ChildProcess:
        client, peer = (f"http://127.0.0.1:{port}" for port in self._ports[index])
        data, members = self._data(index), self._members
        return _launch(self._folders[index], f"m{index}", data, client, peer, members, self._arguments)

    def wait(self, index: int) -> None:
        """Wait until a member serves clients."""
        wait_for_port(self._ports[index][0], self.children[index])

    def kill(self, index: int) -> None:
        self.children[index].kill()

    def freeze(self, index: int) -> None:
        self.children[index].freeze()

    def thaw(self, index: int) -> None:
        self.children[index].thaw()

    def restart(self, index: int) -> None:
        """Start a killed member again, with its data."""
        self.launch(index)
        self.wait(index)

    def launch(self, index: int) -> None:
        """The same without waiting: one of several that are down serves only once there are enough of them."""
        self.children[index].stop()
        self.children[index] = self._launch(index)

    def kill_all(self) -> None:
        for index in range(3):
            self.kill(index)

    def restart_all(self, *, empty: bool = False) -> None:
        """Start the killed members again, with their data or with none."""
        self._generation += 1 if empty else 0
        for index in range(3):
            self.launch(index)
        for index in range(3):
            self.wait(index)

    def backup(self, path: Path) -> None:
        """Save a snapshot of one member."""
        _run(["etcdctl", "--endpoints", self.endpoints[0], "snapshot", "save", str(path)])

    def restart_all_from(self, backup: Path) -> None:
        """Start the killed members again, each with what a backup holds."""
        self._generation += 1
        for index, (_, peer) in enumerate(self._ports):
            run = ["etcdctl", "snapshot", "restore", str(backup), "--data-dir", str(self._data(index))]
            run += ["--name", f"m{index}", "--initial-cluster", self._members]
            _run([*run, "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"])
        self.restart_all()

    def leader(self) -> int:
        """Which member leads."""
        for index, endpoint in enumerate(self.endpoints):
            if self.children[index].alive():
                columns = _run(["etcdctl", "--endpoints", endpoint, "endpoint", "status"]).split(", ")
                if columns[4] == "true":
                    return index
        raise AssertionError("no member leads")

    def ctl(self, *arguments: str, text: str = "") -> str:
        """Run etcdctl, which asks any of the members; its output."""
        return _run(["etcdctl", "--endpoints", ",".join(self.endpoints), *arguments], text)

    def close(self) -> None:
        for child in self.children:
            # One that has lost the others takes long to stop by itself.
            child.kill()
            child.stop()


def _launch(
    folder: Path, name: str, data: Path, client: str, peer: str, cluster: str, options: Iterable[str]
) -> ChildProcess:
    return ChildProcess(
        [
            binary("etcd"),
            *("--name", name, "--data-dir", str(data)),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", cluster),
            *("--logger", "zap", "--log-level", "warn", "--unsafe-no-fsync"),
            *options,
        ],
        folder / "etcd.log",
    )


def _run(command: list[str], text: str = "") -> str:
    command = [binary(command[0]), *command[1:]]
    result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, f"{' '.join(command)}: {result.stderr or result.stdout}"
    return result.stdout
