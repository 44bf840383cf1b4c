"""Compile proto/**/*.proto into the rooms that own them: proto/registry/pb/x.proto -> registry/pb/x_pb2.py.

Runs as a hatchling build hook (`pip install .`, `-e .`, sdist -> wheel), and by hand after editing a .proto file:
`python hatch_build.py`.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent


def compile_protos(root: Path = ROOT) -> list[Path]:
    """Generate `_pb2.py` and `_pb2.pyi` next to the room's code; return the .proto files compiled."""
    from grpc_tools import protoc

    sources = sorted((root / "proto").rglob("*.proto"))
    well_known = str(resources.files("grpc_tools") / "_proto")
    args = ["protoc", f"-I{root / 'proto'}", f"-I{well_known}", f"--python_out={root}", f"--pyi_out={root}"]
    code = protoc.main([*args, *map(str, sources)])
    if code != 0:
        raise RuntimeError(f"protoc failed with exit code {code} on {', '.join(p.name for p in sources)}")
    return sources


if __name__ == "__main__":
    for source in compile_protos():
        print(f"compiled {source.relative_to(ROOT)}", file=sys.stderr)
else:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class ProtoBuildHook(BuildHookInterface[Any]):
        """hatchling calls `initialize` before it collects files."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Generate the modules; `artifacts` in pyproject.toml ships them although git ignores them."""
            compile_protos(Path(self.root))
