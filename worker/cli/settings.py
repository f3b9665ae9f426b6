"""Every setting of the worker, declared once: a flag, an environment variable, a line of an env file.

``--poll-interval`` is ``OPS_WORKER_POLL_INTERVAL``. A flag wins over the environment, the environment over the file,
the file over the default. An empty variable counts as not set, and one that is misspelt is an error.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, cast
from urllib.parse import parse_qs, urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from worker.errors import UsageError, expected
from worker.model.container import check_engine_address
from worker.model.images import check_pattern
from worker.model.sizes import Size, shown_size

PREFIX = "OPS_WORKER_"
_MOST_PORT = 65_535
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
GENERAL_URL = "DATABASE_URL"
"""The variable that other programs read, for the database where ``OPS_WORKER_DATABASE_URL`` is not set."""


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
    if any("=" not in field for field in url.query.split("&") if url.query):
        raise ValueError("expected name=value behind the question mark")
    if any(mode not in _SSL_MODES for mode in modes):
        raise ValueError(f"expected an sslmode out of {', '.join(_SSL_MODES)}")
    return value


def _image_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(check_pattern, patterns))


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
ImagePatterns = Annotated[Words, AfterValidator(_image_patterns)]
Address = Annotated[tuple[str, int] | None, NoDecode, BeforeValidator(_address)]
Seconds = Annotated[float, Field(gt=0)]
Cores = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
DockerHost = Annotated[str | None, AfterValidator(check_engine_address)]


def _setting(default: Any, metavar: str, description: str, **constraints: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"metavar": metavar}, **constraints)


MAX_LEASE = 3600
"""Seconds; the database grants no longer one."""


class Settings(BaseSettings):
    """Runs the workflows of ops.runs in Docker until it is told to stop."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
    )

    verb: Words = _setting((), "", "the words of a command and its arguments; none: work")
    env_file: Path | None = _setting(None, "FILE", "lines of OPS_WORKER_NAME=value")
    version: bool = _setting(False, "", "show the version and exit")

    database_url: DatabaseUrl | None = _setting(
        None, "URL", "the control plane: postgresql://user:password@host/database"
    )
    worker_id: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        description="the same after each restart (default: the host's name)",
        json_schema_extra={"metavar": "NAME"},
    )
    concurrency: int = _setting(2, "N", "how many runs at once", ge=1, le=500)
    labels: Words = _setting((), "A,B", "labels that this host offers; a run may ask for these only")
    lease: int = _setting(300, "SECONDS", "after which the runs of a silent worker are given up", ge=15, le=MAX_LEASE)
    poll_interval: Seconds = _setting(5.0, "SECONDS", "between two looks at the queue")
    until_idle: bool = _setting(False, "", "exit once the queue holds nothing for this worker")
    drain_timeout: Seconds | None = _setting(None, "SECONDS", "that runs may still take after the first signal")

    docker_host: DockerHost = _setting(None, "URL", "the engine; unset: DOCKER_HOST, else Docker's own default")
    allowed_images: ImagePatterns = _setting(("*",), "A,B", "patterns of image names that may run here")
    allowed_networks: Words = _setting(("bridge", "none"), "A,B", "that a workflow may choose")
    read_only_root: bool = _setting(False, "", "read-only root file systems, whatever a workflow says")
    secrets_dir: Path | None = _setting(None, "DIR", "secrets for runs: DIR/NAME and DIR/WORKSPACE_KEY/NAME")
    secrets_as_env: bool = _setting(False, "", "secrets also as environment variables of the container")
    stop_grace: Seconds = _setting(10.0, "SECONDS", "between SIGTERM and SIGKILL")
    pull_timeout: Seconds = _setting(3600.0, "SECONDS", "that the pull of an image may take")
    default_timeout: Seconds = _setting(3600.0, "SECONDS", "for a run that sets no limit")
    max_timeout: Seconds | None = _setting(None, "SECONDS", "that a workflow may ask for at most")
    default_cpus: Cores = _setting(2.0, "CORES", "for a run that sets no limit")
    max_cpus: Cores | None = _setting(None, "CORES", "that a workflow may ask for at most")
    default_memory: Size = _setting(2 * 2**30, "SIZE", "such as 512m, for a run that sets no limit")
    max_memory: Size | None = _setting(None, "SIZE", "that a workflow may ask for at most")
    default_pids: Count = _setting(1024, "N", "processes, for a run that sets no limit")
    max_pids: Count | None = _setting(None, "N", "processes that a workflow may ask for at most")
    default_nofile: Count = _setting(16_384, "N", "open files, for a run that sets no limit")
    max_nofile: Count | None = _setting(None, "N", "open files that a workflow may ask for at most")
    default_output: Size = _setting(2 * 2**30, "SIZE", "of printed text, for a run that sets no limit")
    max_output: Size | None = _setting(None, "SIZE", "that a workflow may ask for at most")
    default_disk: Size = _setting(20 * 2**30, "SIZE", "written to the disk, for a run that sets no limit")
    max_disk: Size | None = _setting(None, "SIZE", "that a workflow may ask for at most")
    max_log: Size = _setting(64 * 2**20, "SIZE", "of stored output per run, and 1 MiB of its end")
    min_free_disk: Size = _setting(2**30, "SIZE", "of free disk below which no run is claimed")
    containerd_root: Path = _setting(Path("/var/lib/containerd"), "DIR", "where containerd keeps its data")

    artifact_store: str = _setting(
        "file:///var/lib/ops-worker/artifacts",
        "URL",
        "file:/// or s3://",
    )

    keep_logs: Count | None = _setting(None, "DAYS", "that prune keeps the log of a run after its end")
    keep_events: Count | None = _setting(None, "DAYS", "that prune keeps the events of a run after its end")
    dry_run: bool = _setting(False, "", "say what would be deleted, and delete nothing")

    yes: bool = _setting(False, "", "drop tables without asking")

    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "LEVEL", "debug, info, warning or error")
    log_format: Literal["auto", "console", "json"] = _setting(
        "auto", "FORMAT", "console, json, or auto: console on a terminal"
    )
    metrics_address: Address = _setting(None, "HOST:PORT", "where /metrics is served; unset: nowhere")

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
    "stop_grace": "limits of a run",
    "artifact_store": "artifacts",
    "keep_logs": "prune",
    "yes": "db rollback",
    "log_level": "what the worker says",
}
"""The headings of the help, each above the setting that it names."""

_SIZES = frozenset(
    {f"{bound}_{what}" for bound in ("default", "max") for what in ("memory", "output", "disk")}
    | {"max_log", "min_free_disk"}
)
_FLAG_ONLY = frozenset({"verb", "version", "dry_run", "yes"})
_SECRET = frozenset({"database_url"})


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: its name, its arguments and what each is, what it does, and the settings that it reads."""

    name: str
    arguments: Mapping[str, str]
    does: str
    reads: frozenset[str]

    @property
    def words(self) -> tuple[str, ...]:
        """The name, word by word."""
        return tuple(self.name.split())

    @property
    def usage(self) -> str:
        """The name and the arguments, an optional one in brackets."""
        return " ".join((self.name, *self.arguments))


_DATABASE = frozenset({"env_file", "version", "database_url"})
_PRUNE = _DATABASE | {"worker_id", "artifact_store", "keep_logs", "keep_events", "dry_run", "log_level", "log_format"}
_WORK = Command(
    "", {}, str(Settings.__doc__), frozenset(Settings.model_fields) - {"verb", "keep_logs", "keep_events", *_FLAG_ONLY}
)
_COMMANDS = (
    Command("db migrate", {}, "apply the migrations that the database lacks", _DATABASE),
    Command("db status", {}, "list the migrations, applied or pending", _DATABASE),
    Command("db verify", {}, "say what is missing or different in the schema", _DATABASE),
    Command(
        "db rollback",
        {"[VERSION]": "take back this migration and all later ones (default: the newest only)"},
        "take migrations back, with the data in their tables",
        _DATABASE | {"yes"},
    ),
    Command(
        "db create-worker",
        {"NAME": "of the role", "[-]": "read the password from standard input (default: make one, and print it)"},
        "make a role for a build host, or set its password",
        _DATABASE,
    ),
    Command("prune", {}, "delete expired artifacts, and old logs and events", _PRUNE),
)
COMMANDS = " | ".join(command.usage for command in _COMMANDS)


def load(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Settings:
    """Reads the settings; ``--help`` prints them and exits. ``environ`` is the process's own unless given.

    Raises ``UsageError`` with a line for each bad value. No line quotes a secret.
    """
    environ = os.environ if environ is None else environ
    source, flags, words, unknown = _parsed(argv)
    problems: list[str] = []
    if flags.pop("help", False):
        _help(words).print_help()
        sys.exit(0)
    values: dict[str, Any] = _file(flags.get("env_file") or environ.get(f"{PREFIX}ENV_FILE"), problems)
    values |= _variables(environ, "the environment", problems)
    if words:
        values["verb"] = tuple(words)
    general = environ.get(GENERAL_URL) if "database_url" not in {*values, *flags} else None
    if general:
        values["database_url"] = general
    problems = [_without_password(problem) for problem in (*problems, *map(_unknown_flag, unknown))]
    if not unknown:  # else a word may be the value of an unknown flag
        problems += _misuse(words, flags)
    try:
        settings = Settings(_cli_settings_source=source, **values)
    except ValidationError as error:
        problems += [_explain(problem, general=bool(general)) for problem in error.errors(include_url=False)]
    else:
        problems += _contradictions(settings)
        if not problems:
            return settings
    raise UsageError(*problems)


def flag(name: str) -> str:
    """How a person names a setting: by its flag, and by its variable where it has one."""
    return _flag(name) if name in _FLAG_ONLY else f"{_flag(name)} ({_variable(name)})"


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of leaving the program."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(_without_password(message.removeprefix("argument ")))


def _parsed(argv: Sequence[str]) -> tuple[CliSettingsSource[Any], dict[str, Any], list[str], list[str]]:
    """The flags as a source of settings and as they were given, the words around them, and the unknown flags."""
    parser = _Parser(usage="ops-worker", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("verb", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    given: dict[str, Any] = {}
    unknown: list[str] = []

    def add(_parser: object, *names: str, **options: Any) -> None:
        name = str(options.get("dest", names[0]))
        if name in _FLAG_ONLY:
            options = {"action": "store_const", "const": "true", "dest": name}
        if name != "verb":
            parser.add_argument(*names, **options)

    def parse(_parser: object, args: Sequence[str], *_: object) -> argparse.Namespace:
        found, extra = parser.parse_known_intermixed_args(args)
        given.update(vars(found))
        unknown.extend(word for word in extra if word.startswith("-"))  # the others may be values of these
        return argparse.Namespace(**{name: value for name, value in given.items() if name not in ("verb", "help")})

    source: CliSettingsSource[Any] = CliSettingsSource(
        Settings, root_parser=parser, add_argument_method=add, parse_args_method=parse
    )
    flags = source(args=list(argv))
    return flags, given, given.pop("verb", []), unknown


def _command(words: Sequence[str]) -> Command | None:
    """The command that those words begin with, the work itself if there are none; None for an unknown command."""
    if not words:
        return _WORK
    return next((each for each in _COMMANDS if tuple(words[: len(each.words)]) == each.words), None)


def _misuse(words: Sequence[str], flags: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the words, and the flags that their command does not read. No word is quoted."""
    command = _command(words)
    if command is None:
        yield f"unknown command; there are these: {COMMANDS}"
        return
    given, optional = len(words) - len(command.words), sum(name.startswith("[") for name in command.arguments)
    if not len(command.arguments) - optional <= given <= len(command.arguments):
        yield f"too {'many' if given else 'few'} words after {command.name}; it is: ops-worker {command.usage}"
    for name in flags:
        if name not in command.reads | {"version"}:
            yield f"{_flag(name)}: {_reader(command)} does not read this setting; see {_prog(command)} --help"


def _reader(command: Command) -> str:
    return command.name or "the worker"


def _prog(command: Command) -> str:
    return f"ops-worker {command.name}".strip()


def _help(words: Sequence[str]) -> argparse.ArgumentParser:
    """The help of the command that those words begin with; else of the program, with all commands and settings."""
    command = _command(words)
    whole = command is None or command is _WORK
    prog = "ops-worker" if command is None else _prog(command)
    parser = argparse.ArgumentParser(
        usage="ops-worker [SETTING ...]\n       ops-worker COMMAND [SETTING ...]\n       ops-worker COMMAND --help"
        if command is None or whole
        else " ".join((prog, *command.arguments, "[SETTING ...]")),
        description=_WORK.does if command is None else f"{command.does[0].upper()}{command.does[1:]}".rstrip(".") + ".",
        epilog="A setting is a flag, else an environment variable (--log-level is OPS_WORKER_LOG_LEVEL), else a line of"
        f" the env file; the database's URL is {GENERAL_URL} where it is none of those. --no-NAME turns a switch off.",
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
    )
    listed = {each.usage: each.does for each in _COMMANDS} if command is None or whole else command.arguments
    if listed:
        group = parser.add_argument_group("commands" if whole else "arguments")
        for name, meaning in listed.items():
            group.add_argument(name, metavar=name, help=meaning)
    group, heading = parser.add_argument_group("settings"), "settings"
    for name, field in Settings.model_fields.items():
        heading = _SECTIONS.get(name, heading)
        if name == "verb" or not (command is None or whole or name in command.reads):
            continue
        if whole and group.title != heading:
            group = parser.add_argument_group(heading)
        _describe(group, name, field)
    return parser


def _describe(group: Any, name: str, field: FieldInfo) -> None:
    """Adds a line of the help: the flag, what it means, and its default."""
    default = "" if field.default_factory else _shown(name, field.default)
    text = f"{field.description}{f' (default: {default})' if default else ''}".replace("%", "%%")
    if field.annotation is bool:
        group.add_argument(_flag(name), action="store_true", help=text)
    else:
        group.add_argument(_flag(name), metavar=cast("dict[str, str]", field.json_schema_extra)["metavar"], help=text)


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


def _explain(problem: Mapping[str, Any], *, general: bool) -> str:
    """One line for a bad value; ``general`` says that the database's URL came from ``DATABASE_URL``."""
    name = str(problem["loc"][0])
    shown = repr(problem["input"])
    got = "" if name in _SECRET or "@" in shown else f", got {shown}"  # before an @ there may be a password
    named = GENERAL_URL if general and name == "database_url" else flag(name)
    return f"{named}: {_expected_number(name) or expected(problem)}{got}"


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
    for what in ("timeout", "cpus", "memory", "pids", "nofile", "output", "disk"):
        default, most = getattr(settings, f"default_{what}"), getattr(settings, f"max_{what}")
        if most is not None and default > most and f"default_{what}" in settings.model_fields_set:
            shown = _shown(f"max_{what}", default), _shown(f"max_{what}", most)
            yield f"{flag(f'default_{what}')}: {shown[0]} is more than {_flag(f'max_{what}')}, {shown[1]}"
    folder, file = settings.secrets_dir, settings.env_file
    if folder is not None and file is not None and file.resolve().is_relative_to(folder.resolve()):
        yield f"{flag('env_file')}: {file} is in {_flag('secrets_dir')}, where every workflow could name it as a secret"


def _unknown_flag(word: str) -> str:
    name = word.partition("=")[0] if word.startswith("--") else word[:2]  # what follows may be a secret
    return f"unknown setting {name}{_did_you_mean(name, map(_flag, Settings.model_fields.keys() - {'verb'}))}"


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
