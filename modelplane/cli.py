"""`modelplane COMMAND`. Invariant: a command's modules are imported only when it runs.

So `modelplane --help` answers at once, and a monitor, which lives in a sidecar, never pays for what another command
needs: TensorFlow above all.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from modelplane.commands.rollout import VERBS
from modelplane.errors import INTERRUPTED, USAGE, as_user_error


@dataclass(frozen=True, slots=True)
class Command:
    """A command: `module` has `run(argv) -> exit code`."""

    module: str
    summary: str


COMMANDS = {
    "up": Command("up", "run a whole fleet on this machine: etcd, control plane, Envoy, model servers"),
    "status": Command("status", "show models, versions and instances, and why something is not served"),
    "get": Command(
        "get", "get models|versions|instances|envoys|quarantine: lists, also as JSON and YAML, also watched"
    ),
    "describe": Command("describe", "describe model NAME: versions, instances, clusters, and what was refused"),
    "apply": Command("apply", "make the policies of models what files say: versions, instances, traffic, rollouts"),
    "delete": Command("delete", "delete model MODEL: its policy"),
    "label": Command("label", "label MODEL canary=4 stable-: give versions labels, or take them away"),
    "traffic": Command("traffic", "traffic MODEL 3=90 4=10: split the requests that name no version"),
    "rollout": Command("rollout", "rollout status|history|undo|pause|resume MODEL: how far it is; how to go back"),
    "why": Command("why", "why MODEL[@VERSION|:LABEL]: who answers and why, from the policy to the endpoints"),
    "top": Command("top", "how busy each version of each model is: requests, errors, times, in flight"),
    "events": Command("events", "what happened: policies, rollouts, placements, losses"),
    "schema": Command("schema", "print the JSON schema of a policy, for editors"),
    "completion": Command("completion", "completion bash|zsh|fish: print what completes commands in that shell"),
    "drain": Command("drain", "let an instance, or a model of it, end its requests and get no new ones; maybe stop it"),
    "undrain": Command("undrain", "take a drain back"),
    "xds": Command("xds", "xds dump: print the resources that Envoys are sent, as JSON"),
    "control-plane": Command("control_plane", "turn the registry into Envoy configuration over xDS"),
    "monitor": Command("monitor", "watch one model server, or start and own it, and register what it serves"),
    "model-server": Command("model_server", "a stand-in for tensorflow_model_server, with its flags"),
    "envoy-bootstrap": Command("envoy_bootstrap", "print the one file that an Envoy needs"),
    "grpc-bootstrap": Command("grpc_bootstrap", "print the one file that a gRPC client without a proxy needs"),
    "version": Command("version", "print versions"),
}


def usage() -> str:
    """The text of `modelplane --help`."""
    rows = "\n".join(f"  {name:<17}{command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: modelplane COMMAND [options]\n\n"
        "Makes a fleet of TensorFlow Serving processes look like one server.\n\n"
        f"commands:\n{rows}\n\n"
        "modelplane COMMAND --help tells all about one of them.\n\n"
        "examples:\n"
        "  modelplane up                                        try it: two servers, example models, one address\n"
        "  modelplane up --model mnist=/models/mnist            the same with a SavedModel of yours\n"
        "  modelplane monitor -- tensorflow_model_server --port=8500 --model_config_file=/models/models.config\n"
    )


def _fail(command: str, message: str, code: int) -> int:
    sys.stderr.write(f"modelplane{command and ' ' + command}: error: {message}\n")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit codes: 0, 1 failure, 2 wrong usage, 3 conflict, 5 differences, 130 Ctrl-C."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help", "help"):
        if rest and rest[0] in COMMANDS:
            return main([rest[0], "--help"])
        sys.stdout.write(usage())
        return 0
    if name in ("-V", "--version"):
        name = "version"
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        return _fail("", f"no command {name!r}; {hint}", USAGE)
    # gRPC's C core writes to stderr by itself, past our logs, about what it also reports as an error.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        module = importlib.import_module(f"modelplane.commands.{COMMANDS[name].module}")
        return int(module.run(rest))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`modelplane status | head`); flushing at exit must not complain again.
        sys.stdout = None
        return 1
    except Exception as error:
        mistake = as_user_error(error)
        if mistake is None:
            raise
        # `modelplane rollout history: error: …`, for it is that whose --help tells more.
        verb = f" {rest[0]}" if name == "rollout" and rest and rest[0] in VERBS else ""
        return _fail(f"{name}{verb}", str(mistake), mistake.exit_code)
