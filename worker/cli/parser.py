"""The command line, the environment and the env file → a command and its settings; the help.

A flag wins over the environment, the environment over the file, the file over the default. An empty variable counts
as not set. A misspelt name is an error.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, cast

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource

from worker.cli.commands import COMMANDS, WORK, Command, Invocation, commands_below
from worker.cli.options import OPTIONS, Option
from worker.cli.settings import FLAG_ONLY, GENERAL_URL, PREFIX, Settings, flag, spelling, variable
from worker.errors import UsageError, expected
from worker.model.sizes import shown_size

_SECTIONS = {
    "env_file": "general",
    "database_url": "the queue",
    "docker_host": "containers",
    "stop_grace": "limits of a run",
    "notify_file": "notifications",
    "artifact_store": "artifacts",
    "keep_logs": "prune",
    "yes": "db rollback",
    "listen": "console",
    "log_level": "logs and metrics",
}
"""The headings of the help, each by the setting below it."""

_SECRET = frozenset({"database_url", "jwt_secret"})


def parse(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Invocation:
    """Reads the command line; ``--help`` prints the help and exits. ``environ`` defaults to that of the process.

    Raises ``UsageError`` with one line for each problem. No line quotes a secret.
    """
    environ = os.environ if environ is None else environ
    source, flags, words, unknown = _read_argv(argv)
    command = _command(words)
    if flags.pop("help", False):
        (_group_help(words) if command is None and commands_below(words) else _help(command)).print_help()
        sys.exit(0)
    problems: list[str] = []
    given = {name: flags.pop(name) for name in OPTIONS if name in flags}
    values: dict[str, Any] = _from_file(flags.get("env_file") or environ.get(variable("env_file")), problems)
    values |= _from_variables(environ, "the environment", problems)
    general = environ.get(GENERAL_URL) if "database_url" not in {*values, *flags} else None
    if general:
        values["database_url"] = general
    problems = [
        _without_password(problem) for problem in (*problems, *(_unknown_flag(command, word) for word in unknown))
    ]
    if not unknown:  # a word may be the value of an unknown flag
        problems += _misuse(command, words, {**flags, **given})
    options = _options(command, given, problems)
    try:
        settings = Settings(_cli_settings_source=source, **values)
    except ValidationError as error:
        problems += [_bad_value(problem, general=bool(general)) for problem in error.errors(include_url=False)]
    else:
        problems += _contradictions(settings)
        if command is not None and not problems:
            return Invocation(command, tuple(words[len(command.words) :]), settings, options)
    raise UsageError(*problems)


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises ``UsageError`` instead of ending the program."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(_without_password(message.removeprefix("argument ")))


def _read_argv(argv: Sequence[str]) -> tuple[CliSettingsSource[Any], dict[str, Any], list[str], list[str]]:
    """Returns the flags as a source of settings, the flags as given, the words between them, and unknown flags."""
    parser = _Parser(usage="ops-worker", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    given: dict[str, Any] = {}
    unknown: list[str] = []

    def add(_parser: object, *names: str, **options: Any) -> None:
        name = str(options.get("dest", names[0]))
        if name in FLAG_ONLY:
            options = {"action": "store_const", "const": "true", "dest": name}
        parser.add_argument(*names, **options)

    for name, option in OPTIONS.items():
        parser.add_argument(*spellings(name, option), dest=name, action=_action(option))

    def read(_parser: object, args: Sequence[str], *_: object) -> argparse.Namespace:
        found, extra = parser.parse_known_intermixed_args(args)
        given.update(vars(found))
        unknown.extend(word for word in extra if word.startswith("-"))  # other words may be values of unknown flags
        settings = {name: value for name, value in given.items() if name in Settings.model_fields}
        return argparse.Namespace(**settings)

    source: CliSettingsSource[Any] = CliSettingsSource(
        Settings, root_parser=parser, add_argument_method=add, parse_args_method=read
    )
    flags = source(args=list(argv))
    return flags, given, given.pop("words", []), unknown


def spellings(name: str, option: Option) -> tuple[str, ...]:
    """The flags of an option: ``-f`` and ``--follow``."""
    return (option.short, flag(name)) if option.short else (flag(name),)


def _action(option: Option) -> str:
    if not option.metavar:
        return "store_true"
    return "append" if option.many else "store"


def _options(command: Command | None, given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Reads the options that were given; None, False or () stands for every other one of the command."""
    values: dict[str, Any] = {}
    for name in command.options if command else ():
        option = OPTIONS[name]
        if not option.metavar:
            values[name] = name in given
            continue
        texts = given.get(name, [])
        texts = texts if isinstance(texts, list) else [texts]
        try:
            read = [option.read(text) for text in texts]
        except ValueError as error:
            got = f", got {texts[0]!r}" if len(texts) == 1 and "@" not in texts[0] else ""  # it may be a password
            problems.append(f"{flag(name)}: {error}{got}")
        else:
            values[name] = tuple(read) if option.many else next(iter(read), None)
    return values


def _from_file(path: str | None, problems: list[str]) -> dict[str, str]:
    """Reads the settings in the env file. It expands no ``$NAME``, like systemd and Docker."""
    if not path:
        return {}
    try:
        with Path(path).open(encoding="utf-8") as stream:
            variables = dotenv_values(stream=stream, interpolate=False)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        problems.append(f"{spelling('env_file')}: cannot read {path}: {why}")
        return {}
    return _from_variables(variables, path, problems)


def _from_variables(variables: Mapping[str, str | None], where: str, problems: list[str]) -> dict[str, str]:
    """Returns the values of the worker's variables, by the names of their settings."""
    known = {variable(name): name for name in Settings.model_fields if name not in FLAG_ONLY}
    ours = {name: value for name, value in variables.items() if name.startswith(PREFIX)}
    problems += [
        f"{name} in {where}: there is no such setting{_did_you_mean(name, known)}" for name in ours if name not in known
    ]
    return {known[name]: value for name, value in ours.items() if value and name in known}


# --- what can be wrong ------------------------------------------------------------------------------------------------


def _command(words: Sequence[str]) -> Command | None:
    """Returns the command that the words begin with, ``WORK`` for no words, None for an unknown command."""
    if not words:
        return WORK
    return next((each for each in COMMANDS if tuple(words[: len(each.words)]) == each.words), None)


def _misuse(command: Command | None, words: Sequence[str], flags: Mapping[str, Any]) -> Iterator[str]:
    """Checks the words, and that the command reads each given flag. Quotes no word: it may be a secret."""
    if command is None:
        near = commands_below(words) or commands_below(words[:1]) or COMMANDS
        yield f"unknown command; expected one of: {' | '.join(each.usage for each in near)}"
        return
    given, optional = len(words) - len(command.words), sum(name.startswith("[") for name in command.arguments)
    if not len(command.arguments) - optional <= given <= len(command.arguments):
        yield f"too {'many' if given else 'few'} words after {command.name}; usage: ops-worker {command.usage}"
    for name in flags:
        if name not in {*command.reads, *command.options, "version"}:
            kind, reader = "option" if name in OPTIONS else "setting", command.name or "the worker"
            yield f"{flag(name)}: {reader} does not read this {kind}; see {_program(command)} --help"


def _contradictions(settings: Settings) -> Iterator[str]:
    """Refuses a given default above its maximum, and an env file in the folder of the secrets for runs."""
    for name, bound in settings.policy.bounds.items():
        default, maximum = f"default_{name}", f"max_{name}"
        if default in settings.model_fields_set and bound.maximum is not None and bound.default > bound.maximum:
            above, most = _text(default, bound.default), _text(maximum, bound.maximum)
            yield f"{spelling(default)}: {above} is more than {flag(maximum)}, {most}"
    folder, file = settings.secrets_dir, settings.env_file
    if folder is not None and file is not None and file.resolve().is_relative_to(folder.resolve()):
        problem = f"{file} is in {flag('secrets_dir')}, where every workflow could name it as a secret"
        yield f"{spelling('env_file')}: {problem}"


def _bad_value(problem: Mapping[str, Any], *, general: bool) -> str:
    """Explains a bad value in one line. ``general``: the database's URL came from ``DATABASE_URL``."""
    name = str(problem["loc"][0])
    shown = repr(problem["input"])
    got = "" if name in _SECRET or "@" in shown else f", got {shown}"  # a password may stand before an @
    named = GENERAL_URL if general and name == "database_url" else spelling(name)
    return f"{named}: {_expected_number(name) or expected(problem)}{got}"


def _expected_number(name: str) -> str | None:
    """Says what a number must be, with its bounds; None if the setting is not a number with bounds."""
    schema = Settings.model_json_schema()["properties"][name]
    numbers = [form for form in (schema, *schema.get("anyOf", ())) if form.get("type") in _NUMBERS]
    if not numbers or numbers[0].keys().isdisjoint(_BOUNDS):  # a size has no bounds here; its own error explains it
        return None
    bounds = [text.format(numbers[0][key]) for key, text in _BOUNDS.items() if key in numbers[0]]
    return f"expected {_NUMBERS[numbers[0]['type']]} {' and '.join(bounds)}"


_NUMBERS = {"integer": "a whole number", "number": "a number"}
_BOUNDS = {"minimum": "of at least {}", "exclusiveMinimum": "above {:g}", "maximum": "at most {}"}


def _without_password(line: str) -> str:
    """Removes user and password from every URL, because a URL may stand in the place of a path or a name."""
    return re.sub(r"://.*@", "://***@", line, flags=re.DOTALL)


def _unknown_flag(command: Command | None, word: str) -> str:
    name = word.partition("=")[0] if word.startswith("--") else word[:2]  # the rest may be a secret
    known = (*sorted(command.reads), *command.options) if command is not None else tuple(Settings.model_fields)
    return f"unknown setting {name}{_did_you_mean(name, map(flag, known))}"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else "; see ops-worker --help"


# --- the help ---------------------------------------------------------------------------------------------------------


def _help(command: Command | None) -> argparse.ArgumentParser:
    """The help of a command. Without a command, and for an unknown one: all commands and settings, under headings."""
    if command is None or command is WORK:
        usage = "ops-worker [SETTING ...]\n       ops-worker COMMAND [SETTING ...]\n       ops-worker COMMAND --help"
        parser = _help_parser(usage, WORK.does)
        _add_words(parser, "commands", {each.usage: each.does for each in COMMANDS})
        shown: Iterable[str] = Settings.model_fields
    else:
        does = f"{command.does[0].upper()}{command.does[1:]}."
        parser = _help_parser(f"ops-worker {command.usage} [SETTING ...]", does)
        _add_words(parser, "arguments", command.arguments)
        _add_options(parser, command)
        if command.notes:
            parser.epilog = f"{command.notes} {parser.epilog}"
        group, shown = parser.add_argument_group("settings"), command.reads
    for name in Settings.model_fields:
        if command in (None, WORK) and name in _SECTIONS:
            group = parser.add_argument_group(_SECTIONS[name])
        if name in shown:
            _add_setting(group, name)
    return parser


def _group_help(words: Sequence[str]) -> argparse.ArgumentParser:
    """The help of the words that several commands begin with."""
    name = " ".join(words)
    parser = _help_parser(f"ops-worker {name} COMMAND [OPTION ...]\n       ops-worker {name} COMMAND --help", "")
    _add_words(parser, "commands", {each.usage: each.does for each in commands_below(words)})
    return parser


def _add_options(parser: argparse.ArgumentParser, command: Command) -> None:
    listed = parser.add_argument_group("options")
    for name in command.options:
        option = OPTIONS[name]
        meaning = option.meaning + (f": {', '.join(option.choices)}" if option.choices else "")
        text = f"{meaning}{'; may be repeated' if option.many else ''}".replace("%", "%%")
        shape = {"metavar": option.metavar} if option.metavar else {}
        listed.add_argument(*spellings(name, option), action=_action(option), help=text, **shape)  # type: ignore[arg-type]


def _help_parser(usage: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        usage=usage,
        description=description,
        epilog="A setting is a flag, else an environment variable (--log-level is OPS_WORKER_LOG_LEVEL), else a line of"
        f" the env file; the database's URL is {GENERAL_URL} where it is none of those. --no-NAME turns a switch off.",
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
    )


def _add_words(parser: argparse.ArgumentParser, title: str, meanings: Mapping[str, str]) -> None:
    group = parser.add_argument_group(title)
    for name, meaning in meanings.items():
        group.add_argument(name, metavar=name, help=meaning)


def _add_setting(group: Any, name: str) -> None:
    """Adds a line of the help: the flag, its meaning, and its default."""
    field = Settings.model_fields[name]
    default = "" if field.default_factory else _text(name, field.default)
    text = f"{field.description}{f' (default: {default})' if default else ''}".replace("%", "%%")
    if field.annotation is bool:
        group.add_argument(flag(name), action="store_true", help=text)
    else:
        group.add_argument(flag(name), metavar=_metavar(name), help=text)


def _program(command: Command) -> str:
    return f"ops-worker {command.name}".strip()


def _metavar(name: str) -> str:
    return cast("dict[str, str]", Settings.model_fields[name].json_schema_extra)["metavar"]


def _text(name: str, value: object) -> str:
    """A value as the command line takes it; empty for no value."""
    if _metavar(name) == "SIZE" and isinstance(value, int):
        return shown_size(value)
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:.12g}" if isinstance(value, float) else str(value or "")
