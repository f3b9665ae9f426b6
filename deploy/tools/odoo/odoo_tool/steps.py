"""What the program prints, and how it starts others: a line for each step; a failure has advice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class Failure(Exception):
    """The tool cannot go on. ``thing`` is the first line: what is wrong, by name; ``advice`` says what to do.

    ``printed`` is all that a program printed, if one failed.
    """

    def __init__(self, thing: str, advice: str, printed: str = "") -> None:
        super().__init__(thing)
        self.thing = thing
        self.advice = advice
        self.printed = printed


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def step(text: str) -> None:
    """Announces a step."""
    say(f"==> {text}")


def explain(failure: Failure) -> str:
    """The lines that a person reads; the first one names the thing."""
    return f"ERROR: {failure.thing}\n  What to do: {failure.advice}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, **(extra or {})}


def run(
    command: Sequence[str | Path],
    *,
    thing: str,
    advice: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Runs a program that prints for itself.

    Raises:
        Failure: its exit code is not 0
    """
    sys.stdout.flush()
    code = subprocess.run(command, check=False, cwd=cwd, env=environment(env), stdin=subprocess.DEVNULL).returncode
    if code:
        words = command[1:] if command[0] == sys.executable else command
        name = words[1] if words[0] == "-m" else Path(words[0]).name
        raise Failure(f"{thing}: {name} ended with exit code {code}", advice)


def read(
    command: Sequence[str | Path],
    *,
    thing: str,
    advice: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Runs a program and returns what it prints to stdout.

    Raises:
        Failure: its exit code is not 0; the last line that it printed is named
    """
    done = subprocess.run(
        command, check=False, cwd=cwd, env=environment(env), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        printed = (done.stdout + done.stderr).strip()
        say(printed)
        said = (printed.splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Failure(f"{thing}: {said}", advice, printed)
    return done.stdout
