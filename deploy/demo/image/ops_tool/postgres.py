"""A PostgreSQL server inside the container, and questions to a database by psql."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from .context import ToolError

START_SECONDS = 60


def command(*words: str, env: Mapping[str, str] | None = None) -> str:
    """What a program prints.

    Raises:
        ToolError: it failed; the message is what it said.
    """
    done = subprocess.run(words, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"{words[0]} exited with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Session:
    """One connection, kept open: what it reads in a transaction stays as it is."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        self._psql = subprocess.Popen(
            ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1"], env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._psql.__exit__(kind, error, trace)

    def ask(self, sql: str) -> list[str]:
        """The rows of an answer, columns joined by ``|``.

        Raises:
            ToolError: the server refused.
        """
        questions, answers, errors = self._psql.stdin, self._psql.stdout, self._psql.stderr
        if questions is None or answers is None or errors is None:
            raise TypeError("psql has no pipes")
        with contextlib.suppress(BrokenPipeError):  # psql ended: it has said why
            questions.write(f"{sql};\n\\echo --end--\n")
            questions.flush()
        rows: list[str] = []
        for line in answers:
            if line == "--end--\n":
                return rows
            rows.append(line.rstrip("\n"))
        raise ToolError(errors.read().strip() or "psql ended early")


def init(folder: Path, *options: str) -> None:
    """Creates a cluster there; its superuser is postgres."""
    command("initdb", "-D", str(folder), "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", *options)


@contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """Runs that cluster behind a socket in its own folder; yields the environment that leads there."""
    arguments = ["-D", str(folder), "-k", str(folder), "-h", "", "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["postgres", *arguments], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(folder):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ToolError(f"the server did not start: {(folder / 'log').read_text()}")
            time.sleep(0.02)
        yield {"PGHOST": str(folder), "PGUSER": "postgres", "PGDATABASE": "postgres"}
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(folder: Path) -> bool:
    try:
        return (folder / "postmaster.pid").read_text().splitlines()[7].strip() == "ready"
    except (FileNotFoundError, IndexError):
        return False
