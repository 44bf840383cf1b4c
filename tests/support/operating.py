"""What an operator does to a stack of managed instances: the commands, as a person would give them, and policies."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.etcd import EtcdClient, EtcdConfig
from registry.keys import Keyspace, RolloutKey
from registry.rollouts import Phase, RolloutRecord, decode_rollout
from tests.support.waiting import eventually


def policy(name: str, base: Path, **spec: Any) -> dict[str, Any]:
    """A policy document; `spec` in the document's own words."""
    return {
        "apiVersion": "modelplane/v1",
        "kind": "Model",
        "metadata": {"name": name},
        "spec": {"basePath": str(base), **spec},
    }


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass(frozen=True)
class Operator:
    """Gives `modelplane` commands to one registry."""

    etcd: str
    folder: Path

    async def command(self, *words: str, code: int | None = 0, timeout: float = 120.0) -> Said:
        """Run one; fails unless it ends with `code` (None: any)."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "modelplane", *words, "--etcd", self.etcd),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "COLUMNS": "80"},
        )
        try:
            async with asyncio.timeout(timeout):
                out, err = await child.communicate()
        except TimeoutError:
            child.kill()
            await child.wait()
            raise AssertionError(f"modelplane {' '.join(words)} did not end within {timeout:g} s") from None
        said = Said(child.returncode or 0, out.decode(), err.decode())
        assert code is None or said.code == code, f"modelplane {' '.join(words)}: exit code {said.code}\n{said.text}"
        return said

    async def apply(self, *documents: Mapping[str, Any], wait: bool = False, timeout: float = 120.0) -> Said:
        """`modelplane apply -f` of a file with these."""
        path = self.folder / "applied.yaml"
        # JSON is YAML.
        path.write_text("\n---\n".join(json.dumps(document) for document in documents))
        return await self.command("apply", "-f", str(path), *(["--wait"] if wait else []), timeout=timeout)

    async def rollout(self, model: str) -> RolloutRecord | None:
        """`rollouts/<model>`."""
        async with EtcdClient(EtcdConfig((self.etcd,))) as client:
            entry = await client.get(Keyspace().make(RolloutKey(model)))
        return None if entry is None else decode_rollout(entry.value)

    async def until(
        self, model: str, *phases: Phase, version: int | None = None, timeout: float = 120.0
    ) -> RolloutRecord:
        """Wait for a rollout, be it only the one to this version, to be in one of these phases."""

        async def there() -> RolloutRecord | None:
            record = await self.rollout(model)
            assert record is not None, "there is no rollout"
            assert record.phase in phases, f"{record.phase}: {record.text}"
            assert version in (None, record.to_version), f"version {record.to_version}: {record.text}"
            return record

        found = await eventually(there, f"the rollout of {model} to be {' or '.join(phases)}", timeout)
        assert found is not None
        return found
