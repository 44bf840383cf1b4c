"""The models that the local stack serves: the user's own, checked before anything starts, or the examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modelplane.errors import UserError

EXAMPLES = {"half_plus_two": (1,), "digits": (1, 2)}
"""The versions of the models that examples/train.py makes."""
VERSIONS_KEPT = 2
"""How many versions a server holds at once: two, so that both are there while the fleet switches."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model and the folder of its versions, absolute."""

    name: str
    path: Path


def parse_model(text: str) -> Source:
    """Read `NAME=PATH` and check that TensorFlow Serving would find a model there. Raises UserError with the mend."""
    name, equals, raw = text.partition("=")
    if not equals or not name or not raw:
        raise UserError(f"--model {text}: write NAME=PATH, for example --model mnist=/models/mnist")
    if any(ord(character) < 32 for character in text):
        raise UserError(f"--model {text!r}: control characters can't be part of a name or path")
    if not _is_utf8(text):
        raise UserError(f"--model {text!r}: name and path have to be UTF-8")
    try:
        path = Path(raw).expanduser().resolve()
        _check(f"--model {name}={raw}", path)
    except OSError as error:
        raise UserError(f"--model {name}={raw}: {error.strerror}") from None
    except RuntimeError as error:  # a loop of links, a ~ without a home
        raise UserError(f"--model {name}={raw}: {error}") from None
    return Source(name, path)


def _is_utf8(text: str) -> bool:
    # Python hands other bytes of the command line on as lone surrogates.
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _check(what: str, path: Path) -> None:
    if not path.exists():
        raise UserError(f"{what}: there is no folder {path}")
    if not path.is_dir():
        raise UserError(f"{what}: {path} is a file; give the folder that holds the model's version folders")
    if (path / "saved_model.pb").exists():
        if path.name.isdecimal():
            raise UserError(f"{what}: {path} is itself a version; give the folder above it, {path.parent}")
        raise UserError(
            f"{what}: {path} is itself a SavedModel; a version folder is missing around it. "
            f"Move its content into {path / '1'} and give {path} again"
        )
    versions = [child for child in path.iterdir() if child.name.isdecimal() and child.is_dir()]
    if not versions:
        raise UserError(
            f"{what}: {path} holds no version folder; expected something like {path / '1' / 'saved_model.pb'}"
        )
    if not any((version / "saved_model.pb").exists() for version in versions):
        newest = max(versions, key=lambda version: int(version.name))
        raise UserError(f"{what}: no version in {path} has a saved_model.pb; expected {newest / 'saved_model.pb'}")


def parse_models(texts: Iterable[str]) -> tuple[Source, ...]:
    """Read all of them. Raises UserError, for a name given twice too."""
    sources = tuple(parse_model(text) for text in texts)
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--model {name}=…: the name is given twice; versions of one model go into one folder")
    return sources


def config_file(models: Iterable[Source]) -> str:
    """The servers' --model_config_file (model_server_config.proto, text format); no models is allowed there."""
    rows = "".join(
        f'  config {{\n    name: "{_quoted(model.name)}"\n    base_path: "{_quoted(str(model.path))}"\n'
        f'    model_platform: "tensorflow"\n'
        f"    model_version_policy {{ latest {{ num_versions: {VERSIONS_KEPT} }} }}\n  }}\n"
        for model in models
    )
    return f"model_config_list {{\n{rows}}}\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def example_models(folder: Path) -> tuple[Source, ...]:
    """The example models, made or not."""
    return tuple(Source(name, folder / name) for name in EXAMPLES)


def examples_there(folder: Path) -> bool:
    """Whether all of them have been made."""
    return all((folder / name / str(one)).is_dir() for name, versions in EXAMPLES.items() for one in versions)


def examples_folder() -> Path:
    """The examples: part of the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "_examples"
    return shipped if shipped.is_dir() else package.parent / "examples"
