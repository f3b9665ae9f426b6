"""The command ``ops-worker completion``: a script by which a shell completes commands, flags and their values."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import shtab

from worker.cli.commands import COMMANDS, SHELLS, WORK, Command, Invocation
from worker.cli.options import OPTIONS
from worker.cli.parser import spellings
from worker.cli.settings import FLAG_ONLY, Settings, flag
from worker.errors import UsageError

PROGRAM = "ops-worker"
_FILES = ("env_file",)
_FOLDERS = ("secrets_dir", "containerd_root")
_CHOICES = {"log_level": ("debug", "info", "warning", "error"), "log_format": ("auto", "console", "json")}


async def completion(call: Invocation) -> int:
    """Prints the script for one shell."""
    shell = call.arguments[0]
    if shell not in SHELLS:
        raise UsageError(f"SHELL: expected one of {', '.join(SHELLS)}")
    sys.stdout.write(shtab.complete(tree(), shell))
    return 0


def tree() -> argparse.ArgumentParser:
    """All commands, flags and values as argparse has them: a parser for each word."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=str(Settings.__doc__), add_help=False)
    _add_flags(parser, WORK)
    _add_commands(parser, COMMANDS, 0)
    return parser


def _add_commands(parser: argparse.ArgumentParser, commands: Sequence[Command], depth: int) -> None:
    """A parser below ``parser`` for each word at that place of the commands' names."""
    below = parser.add_subparsers(dest=f"word{depth}")
    for word in dict.fromkeys(command.words[depth] for command in commands):
        same = [command for command in commands if command.words[depth] == word]
        ended = next((command for command in same if len(command.words) == depth + 1), None)
        longer = [command for command in same if command is not ended]
        help_text = ended.does if ended else ", ".join(command.words[-1] for command in same)
        one = below.add_parser(word, help=help_text, add_help=False)
        if ended:
            _add_flags(one, ended)
            if ended.name == "completion":
                one.add_argument("shell", choices=SHELLS)
            if "FILE" in ended.arguments:
                one.add_argument("file").complete = shtab.FILE  # type: ignore[attr-defined]
        if longer:
            _add_commands(one, longer, depth + 1)


def _add_flags(parser: argparse.ArgumentParser, command: Command) -> None:
    parser.add_argument("--help", "-h", action="store_true", help="show the help and exit")
    for name in command.options:
        option = OPTIONS[name]
        _add_flag(parser, spellings(name, option), option.meaning, option.metavar, option.choices)
    for name, field in Settings.model_fields.items():
        if name in command.reads or (command is WORK and name in FLAG_ONLY and name == "version"):
            metavar = "" if field.annotation is bool else "VALUE"
            _add_flag(parser, (flag(name),), str(field.description), metavar, _CHOICES.get(name, ()), name)


def _add_flag(
    parser: argparse.ArgumentParser, names: Sequence[str], meaning: str, metavar: str, choices: Sequence[str],
    setting: str = "",
) -> None:  # fmt: skip
    text = meaning.replace("%", "%%")
    if not metavar:
        parser.add_argument(*names, action="store_true", help=text)
        return
    shape: dict[str, Any] = {"choices": choices} if choices else {"metavar": metavar}
    action = parser.add_argument(*names, help=text, **shape)
    if setting in _FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif setting in _FOLDERS:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
