"""Every setting of the worker, declared once: a flag, an environment variable, a line of an env file.

``--poll-interval`` is ``OPS_WORKER_POLL_INTERVAL``. A flag wins over the environment, the environment over the file,
the file over the default. An empty variable counts as not set, and one that is misspelt is an error.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, cast
from urllib.parse import parse_qs, urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    CliSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from worker.errors import ConfigurationError, expected
from worker.images import check_pattern
from worker.units import parse_size, shown_size

PREFIX = "OPS_WORKER_"
ENGINE_EXPECTED = "expected unix:///path or tcp://host:port; for ssh, forward the socket (ssh -L)"
_MOST_PORT = 65_535
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
COMMANDS = "db migrate | db status | db verify | db rollback [VERSION] | db create-worker NAME [-] | prune"


def _words(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(word for part in value.split(",") if (word := part.strip()))


def _address(value: object) -> object:
    if not isinstance(value, str) or not value:
        return value or None
    host, colon, port = value.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or not 0 < int(port) <= _MOST_PORT:
        raise ValueError("expected host:port, such as 127.0.0.1:9464")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - asked for


def _database_url(value: SecretStr) -> SecretStr:
    url = urlsplit(value.get_secret_value())
    ports = [
        host.rpartition(":")[2] for host in url.netloc.rpartition("@")[2].split(",") if re.search(r":[^]]*$", host)
    ]
    modes = parse_qs(url.query).get("sslmode", [])
    if url.scheme not in ("postgresql", "postgres"):
        raise ValueError("expected postgresql://user:password@host/database")
    if any(not port.isdecimal() or not 0 < int(port) <= _MOST_PORT for port in ports):
        raise ValueError("expected a port from 1 to 65535")
    if any(mode not in _SSL_MODES for mode in modes):
        raise ValueError(f"expected an sslmode out of {', '.join(_SSL_MODES)}")
    return value


def _docker_host(value: str | None) -> str | None:
    if value is not None and not value.startswith(("unix://", "tcp://", "http://", "https://")):
        raise ValueError(ENGINE_EXPECTED)
    return value


def _command(words: tuple[str, ...]) -> tuple[str, ...]:
    if words and words[0] not in ("db", "prune"):
        raise ValueError(f"there are these: {COMMANDS}")
    return words


def _image_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(check_pattern, patterns))


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
ImagePatterns = Annotated[Words, AfterValidator(_image_patterns)]
Size = Annotated[int, BeforeValidator(parse_size)]
Address = Annotated[tuple[str, int] | None, NoDecode, BeforeValidator(_address)]
Seconds = Annotated[float, Field(gt=0)]
Cores = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
DockerHost = Annotated[str | None, AfterValidator(_docker_host)]
Command = Annotated[CliPositionalArg[tuple[str, ...]], NoDecode, BeforeValidator(_words), AfterValidator(_command)]


def _setting(default: Any, metavar: str, description: str, **constraints: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"metavar": metavar}, **constraints)


class Settings(BaseSettings):
    """Runs the workflows of ops.runs in Docker. Without a command it works until it is told to stop."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
    )

    verb: Command = _setting(
        (),
        "COMMAND",
        f"{COMMANDS}: applies migrations; lists them; checks the schema; takes back the last one, or VERSION and all "
        "later; makes a role for a build host, or gives it a new password: one that is printed, or, with a dash, the "
        "line on standard input; deletes expired artifacts and old logs",
    )
    env_file: Path | None = _setting(None, "FILE", "lines of OPS_WORKER_NAME=value")
    version: bool = _setting(False, "", "show the version and exit")

    database_url: DatabaseUrl | None = _setting(
        None, "URL", "PostgreSQL of the control plane: postgresql://user:password@host/database"
    )
    worker_id: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        description="name of this host's worker, the same after a restart (default: the host's name)",
        json_schema_extra={"metavar": "NAME"},
    )
    concurrency: int = _setting(2, "N", "how many runs at once", ge=1, le=500)
    labels: Words = _setting((), "A,B", "labels this host offers; it takes runs that ask for no others")
    lease: int = _setting(300, "SECONDS", "after which a silent worker's runs are given up", ge=15, le=86_400)
    poll_interval: Seconds = _setting(5.0, "SECONDS", "between looks at the queue when nothing wakes the worker")
    until_idle: bool = _setting(False, "", "exit 0 once the queue holds nothing for this worker")
    drain_timeout: Seconds | None = _setting(
        None, "SECONDS", "that runs may take after the first signal, before they are left to the next worker"
    )

    docker_host: DockerHost = _setting(None, "URL", "the engine; else as DOCKER_HOST or Docker's own default says")
    allowed_images: ImagePatterns = _setting(("*",), "A,B", "patterns of image names that may run here")
    allowed_networks: Words = _setting(
        ("bridge", "none"), "A,B", "networks that a workflow may choose; the first for a run that does not say"
    )
    read_only_root: bool = _setting(False, "", "the root file system is read-only whatever a workflow says")
    secrets_dir: Path | None = _setting(
        None, "DIR", "secrets that workflows may name: DIR/NAME, and DIR/WORKSPACE_KEY/NAME for one project only"
    )
    secrets_as_env: bool = _setting(
        False, "", "secrets are environment variables too, which `docker inspect` shows to whoever may use the engine"
    )
    stop_grace: Seconds = _setting(10.0, "SECONDS", "between SIGTERM and SIGKILL")
    default_timeout: Seconds = _setting(3600.0, "SECONDS", "for a run that does not say")
    max_timeout: Seconds | None = _setting(None, "SECONDS", "that a workflow may ask for at most")
    default_cpus: Cores = _setting(2.0, "CORES", "for a run that does not say")
    max_cpus: Cores | None = _setting(None, "CORES", "that a workflow may ask for at most")
    default_memory: Size = _setting(2 * 2**30, "SIZE", "for a run that does not say, such as 512m")
    max_memory: Size | None = _setting(None, "SIZE", "that a workflow may ask for at most")
    default_pids: Count = _setting(1024, "N", "processes for a run that does not say")
    max_pids: Count | None = _setting(None, "N", "processes that a workflow may ask for at most")
    default_output: Size = _setting(2 * 2**30, "SIZE", "that a run which does not say may print before it is stopped")
    max_output: Size | None = _setting(None, "SIZE", "that a workflow may ask for at most")
    default_disk: Size = _setting(20 * 2**30, "SIZE", "that a run which does not say may write to the engine's disk")
    max_disk: Size | None = _setting(None, "SIZE", "that a workflow may ask for at most")
    max_log: Size = _setting(64 * 2**20, "SIZE", "of a run's output that is stored, and its end; the rest is counted")
    min_free_disk: Size = _setting(
        2**30,
        "SIZE",
        "below which, on the disk of engine or artifacts, nothing is claimed, and the run that wrote most is ended",
    )

    artifact_store: str = _setting(
        "file:///var/lib/ops-worker/artifacts",
        "URL",
        "file:///folder or s3://bucket/prefix, with the credentials of AWS_* variables",
    )

    keep_logs: Count | None = _setting(None, "DAYS", "after which prune deletes the log of a run that has ended")
    keep_events: Count | None = _setting(None, "DAYS", "after which prune deletes the events of a run that has ended")
    dry_run: bool = _setting(False, "", "prune only says what it would delete")

    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "LEVEL", "debug, info, warning or error")
    log_format: Literal["auto", "console", "json"] = _setting(
        "auto", "FORMAT", "console, json, or auto: console on a terminal, else json"
    )
    metrics_address: Address = _setting(None, "HOST:PORT", "where Prometheus finds /metrics; off when unset")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags stand over what :func:`load` passes: it reads the environment and the file itself."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


_SECTIONS = {
    "env_file": "general",
    "database_url": "the queue",
    "docker_host": "containers",
    "artifact_store": "artifacts",
    "keep_logs": "prune",
    "log_level": "what the worker says",
}
"""The headings of the help, each above the setting that it names."""

_SIZES = frozenset(
    {f"{bound}_{what}" for bound in ("default", "max") for what in ("memory", "output", "disk")}
    | {"max_log", "min_free_disk"}
)
_FLAG_ONLY = frozenset({"verb", "version", "dry_run"})
_SECRET = frozenset({"database_url"})


def load(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Settings:
    """Reads the settings; ``--help`` prints them and exits. ``environ`` is the process's own unless given.

    Raises ``ConfigurationError`` with a line for each bad value. No line quotes a secret.
    """
    environ = os.environ if environ is None else environ
    parser, words = _Parser(), list(argv)
    source: CliSettingsSource[Any] = CliSettingsSource(
        Settings,
        root_parser=parser,
        add_argument_method=parser.add_setting,
        parse_args_method=parser.parse_any_order,
    )
    problems: list[str] = []
    flags = source(args=words)
    env_file = parser.env_file or environ.get(f"{PREFIX}ENV_FILE")
    values: dict[str, Any] = {**_file(env_file, problems), **_variables(environ, "the environment", problems)}
    problems = [_without_password(problem) for problem in (*problems, *parser.unknown)]
    try:
        settings = Settings(_cli_settings_source=flags, **values)
    except ValidationError as error:
        wrong = [problem for problem in error.errors(include_url=False) if not _follows(problem, parser.unknown)]
        problems += [_explain(problem) for problem in wrong]
    else:
        problems += _contradictions(settings)
        if not problems:
            return settings
    raise ConfigurationError(*problems)


def flag(name: str) -> str:
    """How a person names a setting: by its flag, and by its variable where it has one."""
    return _flag(name) if name in _FLAG_ONLY else f"{_flag(name)} ({_variable(name)})"


class _Parser(argparse.ArgumentParser):
    """argparse that raises, suggests, and shows each setting under its heading."""

    def __init__(self) -> None:
        super().__init__(
            prog="ops-worker",
            usage="ops-worker [SETTING ...] [COMMAND]",
            description=Settings.__doc__,
            epilog="A setting is a flag, else the environment variable in brackets, else a line of the env file.",
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
        )
        self.unknown: list[str] = []
        self.env_file: str | None = None
        self._section: Any = self

    def add_setting(self, _parser: object, *names: str, **options: Any) -> None:
        """Adds the flag of a field, as pydantic-settings asks for it, in our own words."""
        name = str(options.get("dest", names[0]))
        field = Settings.model_fields[name]
        default = "" if field.default_factory else _shown(name, field.default)
        options["help"] = f"{field.description}{f' (default: {default})' if default else ''}"
        if name == "verb":
            options["nargs"] = "*"
        if name == "version":
            options.update(action="store_const", const="true")
        elif "action" not in options or options["action"] in ("store", "append"):
            options["metavar"] = cast("dict[str, str]", field.json_schema_extra)["metavar"]
        if name in _SECTIONS:
            self._section = self.add_argument_group(_SECTIONS[name])
        if name not in _FLAG_ONLY:
            options["help"] += f" [{_variable(name)}]"
        self._section.add_argument(*names, **options)

    def parse_any_order(self, _parser: object, args: Sequence[str], *_: object) -> argparse.Namespace:
        """Lets flags stand before, between and after the words of a command."""
        namespace, unknown = self.parse_known_intermixed_args(args)
        self.unknown = [_unknown_flag(word) for word in unknown]
        self.env_file = getattr(namespace, "env_file", None)
        return namespace

    def error(self, message: str) -> NoReturn:
        """Raises instead of leaving the program."""
        raise ConfigurationError(_without_password(message.removeprefix("argument ")))


def _file(path: str | None, problems: list[str]) -> dict[str, str]:
    """The settings in the env file; no ``$NAME`` is expanded in it, as systemd and Docker do not do so either."""
    if not path:
        return {}
    try:
        with Path(path).open(encoding="utf-8") as stream:
            variables = dotenv_values(stream=stream, interpolate=False)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        problems.append(f"{flag('env_file')}: cannot read {path}: {why}")
        return {}
    return _variables(variables, path, problems)


def _variables(variables: Mapping[str, str | None], where: str, problems: list[str]) -> dict[str, str]:
    """Our variables among those, by the names of their settings."""
    known = {_variable(name): name for name in Settings.model_fields if name not in _FLAG_ONLY}
    ours = {name: value for name, value in variables.items() if name.startswith(PREFIX)}
    problems += [
        f"{name} in {where}: there is no such setting{_did_you_mean(name, known)}" for name in ours if name not in known
    ]
    return {known[name]: value for name, value in ours.items() if value and name in known}


def _without_password(line: str) -> str:
    """A line without the user and the password of a URL, which may stand where a path or a name should."""
    return re.sub(r"://.*@", "://***@", line, flags=re.DOTALL)


def _follows(problem: Mapping[str, Any], unknown: Sequence[str]) -> bool:
    """Whether it is the value of an unknown flag that was taken for a command."""
    return bool(unknown) and problem["loc"][0] == "verb"


def _explain(problem: Mapping[str, Any]) -> str:
    name = str(problem["loc"][0])
    if name == "verb":
        return f"unknown command; {expected(problem)}"
    shown = repr(problem["input"])
    got = "" if name in _SECRET or "@" in shown else f", got {shown}"  # before an @ there may be a password
    return f"{flag(name)}: {_expected_number(name) or expected(problem)}{got}"


def _expected_number(name: str) -> str | None:
    """What a number must be, bounds included; None for a setting that is none."""
    schema = Settings.model_json_schema()["properties"][name]
    numbers = [form for form in (schema, *schema.get("anyOf", ())) if form.get("type") in _NUMBERS]
    if not numbers or numbers[0].keys().isdisjoint(_BOUNDS):  # without bounds: a size, which explains itself
        return None
    bounds = [text.format(numbers[0][key]) for key, text in _BOUNDS.items() if key in numbers[0]]
    return f"expected {_NUMBERS[numbers[0]['type']]} {' and '.join(bounds)}"


_NUMBERS = {"integer": "a whole number", "number": "a number"}
_BOUNDS = {"minimum": "of at least {}", "exclusiveMinimum": "above {:g}", "maximum": "at most {}"}


def _contradictions(settings: Settings) -> Iterator[str]:
    """A default that was set above the maximum (one that was not set follows it); the worker's own secrets on offer."""
    for what in ("timeout", "cpus", "memory", "pids", "output", "disk"):
        default, most = getattr(settings, f"default_{what}"), getattr(settings, f"max_{what}")
        if most is not None and default > most and f"default_{what}" in settings.model_fields_set:
            shown = _shown(f"max_{what}", default), _shown(f"max_{what}", most)
            yield f"{flag(f'default_{what}')}: {shown[0]} is more than {_flag(f'max_{what}')}, {shown[1]}"
    folder, file = settings.secrets_dir, settings.env_file
    if folder is not None and file is not None and file.resolve().is_relative_to(folder.resolve()):
        yield f"{flag('env_file')}: {file} is in {_flag('secrets_dir')}, where every workflow could name it as a secret"


def _unknown_flag(word: str) -> str:
    if not word.startswith("-"):
        return f"unknown command; there are these: {COMMANDS}"
    name = word.partition("=")[0] if word.startswith("--") else word[:2]  # what follows may be a secret
    return f"unknown setting {name}{_did_you_mean(name, map(_flag, Settings.model_fields))}"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else "; see ops-worker --help"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _shown(name: str, value: object) -> str:
    """A value as one would write it; empty for none."""
    if name in _SIZES and isinstance(value, int):
        return shown_size(value)
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:.12g}" if isinstance(value, float) else str(value or "")
