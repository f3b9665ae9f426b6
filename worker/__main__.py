"""The entry point of the command ``ops-worker``: parses the command line and runs the command.

Exit codes: 0 done; 1 something failed or could not be reached; 2 a setting is wrong or the database refuses the login.
After 2 another attempt is useless, so the systemd unit does not restart the worker. The commands for a person have more
codes: ``worker.cli.commands.EXIT_CODES``.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn, cast

import anyio

from worker import __version__
from worker.cli.commands import WORK
from worker.cli.parser import parse
from worker.cli.settings import Settings, spelling
from worker.errors import ConfigurationError, OpsError, UsageError
from worker.telemetry import configure_logging


def main() -> None:
    """Runs the command line and leaves with its exit code."""
    for stream in (sys.stdout, sys.stderr):  # a locale without a character must not end a command
        cast("io.TextIOWrapper", stream).reconfigure(errors="backslashreplace")
    try:
        _leave(_status(sys.argv[1:]))
    except UsageError as error:
        for problem in error.problems:
            print(f"ops-worker: {problem}", file=sys.stderr)
        _leave(2)
    except ConfigurationError as error:
        name = spelling(error.field) if error.field in Settings.model_fields else error.field
        print(f"ops-worker: {name}: {error.problem}", file=sys.stderr)
        _leave(2)
    except OpsError as error:
        print(f"ops-worker: {error}", file=sys.stderr)
        _leave(error.status)
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        _leave(128 + signal.SIGPIPE)


def _status(argv: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    call = parse(argv)
    if call.settings.version:
        print(f"ops-worker {__version__}")
        return 0
    configure_logging(call.settings.log_level, call.settings.log_format)
    # The daemon replaces these handlers. Without them process 1 of a container ignores both signals.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: _leave(0 if call.command is WORK else 128 + n))
    return anyio.run(call.command.run, call)


def _leave(status: int) -> NoReturn:
    """Ends the process without waiting for threads and without Python's finalisation.

    A thread may wait minutes for an engine that does not answer. A thread of the object store that takes the
    interpreter lock while Python finalises aborts the process (seen on Python 3.11: exit code -6 instead of 1).
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, RuntimeError):  # the reader has closed the pipe, or the signal interrupted a write
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
