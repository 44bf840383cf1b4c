"""The server's own model config file, and its change over time.

Invariant: `ModelConfigFile.models` is the last list that could be read; a file that breaks later changes `trouble`
only, as TensorFlow Serving itself keeps its old configuration then.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from google.protobuf import text_format

from monitor.errors import MonitorError
from monitor.pb import tfs_pb2 as tfs
from monitor.servables import Policy, WatchedModel


def parse_model_config(text: str) -> tuple[WatchedModel, ...]:
    """The models of a ModelServerConfig in protobuf's text format. Raises ValueError that says line and column.

    Fields that this copy of the schema lacks are passed over: the server is newer, and it is the judge of its file.
    """
    return tuple(map(read_model, _parse(text, strict=False)))


def parse_whole_config(text: str) -> tuple[tfs.ModelConfig, ...]:
    """The same, whole, to be sent to the server again. Raises ValueError, also for what would be lost on the way."""
    return tuple(_parse(text, strict=True))


def _parse(text: str, *, strict: bool) -> Iterable[tfs.ModelConfig]:
    config = tfs.ModelServerConfig()
    try:
        text_format.Parse(text, config, allow_unknown_field=not strict)
    except text_format.ParseError as error:
        raise ValueError(f"not a ModelServerConfig: {error}") from error
    if config.HasField("custom_model_config"):
        raise ValueError("a custom_model_config names no models; name them with --model")
    return config.model_config_list.config


def read_model(config: tfs.ModelConfig) -> WatchedModel:
    """What a monitor has to know of one ModelConfig."""
    policy, labels = _policy(config.model_version_policy), tuple(sorted(config.version_labels.items()))
    return WatchedModel(config.name, config.base_path, policy.several, policy, labels)


def _policy(policy: tfs.FileSystemStoragePathSourceConfig.ServableVersionPolicy) -> Policy:
    # file_system_storage_path_source.cc: no policy is the latest version; `latest {}` and `num_versions: 0` are 1.
    match policy.WhichOneof("policy_choice"):
        case "all":
            return Policy(latest=0)
        case "specific":
            return Policy(specific=frozenset(policy.specific.versions))
        case _:
            return Policy(latest=policy.latest.num_versions or 1)


class ModelConfigFile:
    """A config file that is looked at now and then. Reading is blocking: call it in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.models: tuple[WatchedModel, ...] = ()
        self.trouble = ""
        self.text = ""
        """What `models` was read from."""
        self._seen: tuple[int, int, int] | None = None

    def load(self) -> None:
        """Read it for the first time. Raises MonitorError: a file that is wrong from the start is a user's mistake."""
        self.refresh()
        if self.trouble:
            raise MonitorError(self.trouble)

    def whole(self) -> tuple[tfs.ModelConfig, ...]:
        """All that it says of its models. Raises MonitorError for what could not be sent to the server again."""
        try:
            return parse_whole_config(self.text)
        except ValueError as error:
            raise MonitorError(f"--manage: model config file {self.path}: {error}") from error

    def refresh(self) -> bool:
        """Read it again if it has changed; whether `models` or `trouble` did."""
        before = self.models, self.trouble
        try:
            status = self.path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen != self._seen:
                text = self.path.read_text()
                self._seen = seen
                # TensorFlow Serving takes an empty file for an error too, and a list without models for none.
                if not text:
                    raise ValueError("it is empty")
                self.models, self.trouble, self.text = parse_model_config(text), "", text
        except OSError as error:
            self._seen = None
            self.trouble = f"model config file {self.path}: {error.strerror or error}"
        except ValueError as error:
            self.trouble = f"model config file {self.path}: {error}"
        return (self.models, self.trouble) != before
