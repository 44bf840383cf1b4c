"""A configuration dataclass read from flags, environment and a TOML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelplane.commandline import CommandLine
from modelplane.errors import OptionError
from modelplane.logs import LogOptions
from modelplane.options import Option, Sources, build, options_of


@dataclass(frozen=True)
class Store:
    endpoints: tuple[str, ...] = field(
        default=("127.0.0.1:2379",), metadata={"flag": "--etcd", "help": "where etcd is"}
    )
    ca_cert: Path | None = field(default=None, metadata={"flag": "--etcd-ca-cert"})


@dataclass(frozen=True)
class Config:
    target: str = field(default="", metadata={"help": "100% of it"})
    store: Store = field(default_factory=Store)
    ttl: float = 10.0
    replicas: int = 2
    eager: bool = False
    models: tuple[str, ...] = field(default=(), metadata={"flag": "--model", "separator": None})
    server: str = field(default="auto", metadata={"choices": ("auto", "stand-in")})

    def __post_init__(self) -> None:
        if self.ttl <= 0:
            raise ValueError(f"ttl: {self.ttl} is not above 0; give a number of seconds")


def parse(*argv: str, env: dict[str, str] | None = None) -> Config:
    return CommandLine("serve", [Config, LogOptions], description="").parse(argv, env or {})[Config]


def test_defaults_without_any_source() -> None:
    assert parse() == Config()


@pytest.mark.parametrize(
    ("argv", "env", "expected"),
    [
        (["--ttl", "3"], {}, Config(ttl=3.0)),
        (["--ttl=3"], {"MODELPLANE_TTL": "4"}, Config(ttl=3.0)),
        ([], {"MODELPLANE_TTL": "4"}, Config(ttl=4.0)),
        (["--eager"], {}, Config(eager=True)),
        (["--no-eager"], {"MODELPLANE_EAGER": "yes"}, Config(eager=False)),
        ([], {"MODELPLANE_EAGER": "on"}, Config(eager=True)),
        (["--etcd", "a:1,b:2", "--etcd", "c:3"], {}, Config(store=Store(endpoints=("a:1", "b:2", "c:3")))),
        ([], {"MODELPLANE_ETCD": "a:1, b:2"}, Config(store=Store(endpoints=("a:1", "b:2")))),
        (["--etcd-ca-cert", "/ca"], {}, Config(store=Store(ca_cert=Path("/ca")))),
        (["--model", "a=/x,y", "--model", "b=/z"], {}, Config(models=("a=/x,y", "b=/z"))),
        (["--server", "stand-in"], {}, Config(server="stand-in")),
    ],
)
def test_flags_win_over_the_environment(argv: list[str], env: dict[str, str], expected: Config) -> None:
    assert parse(*argv, env=env) == expected


def test_file_below_environment_and_the_commands_table_above_the_shared_keys(tmp_path: Path) -> None:
    file = tmp_path / "modelplane.toml"
    file.write_text(
        'etcd = ["a:1", "b:2"]\nttl = 5\nreplicas = 7\n[serve]\nttl = 6.5\neager = true\n[other]\nanything = 1\n'
    )
    got = parse("--config", str(file), env={"MODELPLANE_REPLICAS": "8"})
    assert got == Config(store=Store(endpoints=("a:1", "b:2")), ttl=6.5, replicas=8, eager=True)
    assert parse(env={"MODELPLANE_CONFIG": str(file)}).replicas == 7


@pytest.mark.parametrize(
    ("argv", "env", "message"),
    [
        (["--ttl", "soon"], {}, "--ttl: 'soon' is not a number"),
        (["--ttl", "nan"], {}, "--ttl: 'nan' is not a number"),
        (["--replicas", "1.5"], {}, "--replicas: '1.5' is not a whole number"),
        ([], {"MODELPLANE_REPLICAS": "many"}, "environment variable MODELPLANE_REPLICAS: 'many' is not a whole number"),
        ([], {"MODELPLANE_EAGER": "maybe"}, "environment variable MODELPLANE_EAGER: 'maybe' is not true or false"),
        (["--server", "best"], {}, "--server: 'best' is none of auto, stand-in"),
        (["--ttl", "0"], {}, "--ttl: 0.0 is not above 0; give a number of seconds (from --ttl)"),
        (
            [],
            {"MODELPLANE_TTL": "-1"},
            "--ttl: -1.0 is not above 0; give a number of seconds (from environment variable MODELPLANE_TTL)",
        ),
        (["--tt", "1"], {}, "unrecognized arguments: --tt 1 (see modelplane serve --help)"),
        (["--config", "/nowhere.toml"], {}, "--config: can't read /nowhere.toml: No such file or directory"),
    ],
)
def test_a_bad_value_is_reported_with_its_source(argv: list[str], env: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse(*argv, env=env)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('ttl = "5"', "'ttl' in {file}: '5' is not a number"),
        ("eager = 1", "'eager' in {file}: 1 is not true or false"),
        ("replicas = 2.5", "'replicas' in {file}: 2.5 is not a whole number"),
        ("replicas = true", "'replicas' in {file}: True is not a whole number"),
        ("etcd = [1]", "'etcd' in {file}: 1 is not text"),
        ("replica = 1", "{file}: unknown key 'replica'; did you mean 'replicas'?"),
        ("zone = 1", "{file}: unknown key 'zone'; if it is for another command, put it in that command's table"),
        ("serve = 1", "{file}: 'serve' has to be a table, [serve]"),
        ("[serve]\nzone = 1", "{file}: unknown key 'zone'"),
        ("ttl = ", "--config: {file} is not TOML: "),
    ],
)
def test_a_bad_file_is_reported_with_its_path(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        parse("--config", str(file))
    assert str(caught.value).startswith(message.format(file=file))


def test_what_a_parent_sets_for_a_nested_configuration_stays() -> None:
    @dataclass(frozen=True)
    class Local:
        store: Store = field(default_factory=lambda: Store(endpoints=("local:1",)))

    # The dataclass is local to this test, so its annotations resolve only with these names in reach.
    Local.__annotations__["store"] = Store
    got = build(Local, Sources(environment={"MODELPLANE_ETCD_CA_CERT": "/ca"}))
    assert got.store == Store(endpoints=("local:1",), ca_cert=Path("/ca"))


def test_a_field_without_default_is_required() -> None:
    @dataclass(frozen=True)
    class Needy:
        name: str

    with pytest.raises(OptionError, match=r"--name is missing \(or MODELPLANE_NAME, or 'name' in the file"):
        build(Needy, Sources())


def test_two_fields_with_one_flag_are_a_programming_error() -> None:
    with pytest.raises(TypeError, match="--target"):
        CommandLine("serve", [Config, Config], description="")


def test_help_teaches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        CommandLine("serve", [Config, LogOptions], description="Serves.", examples=["modelplane serve"]).parse(
            ["--help"]
        )
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for part in (
        "100% of it",
        "default 127.0.0.1:2379",
        "env MODELPLANE_ETCD)",
        "store:",
        "logging:",
        "auto|stand-in",
        "examples:\n  modelplane serve",
    ):
        assert part in text


OPTIONS = {option.path[-1]: option for option in options_of(Config)}


@given(st.integers())
def test_whole_numbers_survive_as_text(number: int) -> None:
    assert OPTIONS["replicas"].from_text(str(number)) == number


@given(st.lists(st.text(st.characters(exclude_characters=",", exclude_categories=["Z", "C"]), min_size=1)))
def test_lists_survive_as_text(values: list[str]) -> None:
    assert OPTIONS["endpoints"].from_text(",".join(values)) == tuple(values)


@given(st.sampled_from(sorted(OPTIONS)), st.text())
def test_any_text_is_read_or_refused_by_a_sentence(name: str, text: str) -> None:
    option: Option = OPTIONS[name]
    try:
        value = option.from_text(text)
    except ValueError as error:
        assert str(error).startswith(repr(text)) or " is n" in str(error)  # noqa: PT017
    else:
        values = value if option.many else (value,)
        assert all(isinstance(one, option.kind) for one in values)
