"""The commands ``ops-worker runs logs`` and ``runs wait``: they read until there is nothing more to come."""

from __future__ import annotations

from datetime import datetime

import anyio

from worker.cli.commands import Invocation
from worker.cli.options import LEVELS
from worker.cli.render import plain
from worker.cli.runs import log_line, outcome
from worker.cli.screen import Screen
from worker.cli.session import NOT_FOUND, OUTCOMES, TIMED_OUT, control_plane, find_run
from worker.database import runs
from worker.database.control_plane import ControlPlane, Row
from worker.errors import Failed, UsageError

POLL_SECONDS = 1.0
MOST_FOUND = 1000
"""How many lines a search of the log returns at most."""


async def logs(call: Invocation) -> int:
    """Prints the log of a run; with ``--follow`` until the run has ended, and exits by its outcome."""
    screen, options = Screen(as_json=call.options["json"]), call.options
    levels = LEVELS[LEVELS.index(options["level"]) :] if options["level"] else None
    _check(call)
    async with control_plane(call, screen, patient=options["follow"]) as plane:
        run = await find_run(plane, call.arguments[0])
        run_id = run["run_id"]
        if options["grep"]:
            found = await runs.search(plane, run_id, options["grep"], options["limit"] or MOST_FOUND)
            _print(screen, found)
            return 0
        if not options["follow"]:
            await _print_log(screen, plane, call, run, levels)
            return 0
        follower = _Follower(screen, plane, run, None if levels is None else frozenset(levels))
        await follower.begin(options["limit"], options["since"])
        return await follower.follow()


def _check(call: Invocation) -> None:
    options = call.options
    if not options["grep"]:
        return
    other = next((name for name in ("follow", "level", "since") if options[name]), None)
    if other is not None:
        raise UsageError(f"--grep: does not go with --{other}; expected one of the two")
    if (options["limit"] or 1) > MOST_FOUND:
        raise UsageError(f"--limit: expected at most {MOST_FOUND} with --grep")


async def _print_log(
    screen: Screen, plane: ControlPlane, call: Invocation, run: Row, levels: tuple[str, ...] | None
) -> None:
    """Prints all lines that are stored, or with ``--limit`` the last ones."""
    chosen = None if levels is None else list(levels)
    limit, since = call.options["limit"], call.options["since"]
    if limit is not None:
        _print(screen, await runs.last_lines(plane, run["run_id"], limit, chosen, since))
        return
    position = runs.Position()
    while lines := await runs.lines_after(plane, run["run_id"], position, chosen, since):
        _print(screen, lines)
        position = position.after(lines)


class _Follower:
    """Prints each line of a run's log once, in the order of their numbers, across lost connections."""

    def __init__(self, screen: Screen, plane: ControlPlane, run: Row, levels: frozenset[str] | None) -> None:
        self._screen = screen
        self._plane = plane
        self._run = run
        self._levels = levels
        self._position = runs.Position()

    async def begin(self, limit: int | None, since: datetime | None) -> None:
        """Starts at that time, and with the last ``limit`` lines, if they are given."""
        run_id = self._run["run_id"]
        if since is not None:
            self._position = await runs.position_before(self._plane, run_id, since)
        if limit is not None:
            self._advance(await runs.last_lines(self._plane, run_id, limit, since=since))

    async def follow(self) -> int:
        """Reads the status before the lines, so the lines of a run that has ended are complete."""
        run_id = self._run["run_id"]
        if self._run["status"] == "queued" and not self._screen.as_json:
            self._screen.remark(f"{self._run['run']} is queued; `ops-worker queue` shows what it waits for")
        while True:
            state = await runs.status(self._plane, run_id)
            if state is None:
                raise Failed(NOT_FOUND, f"RUN: {self._run['run']} was deleted")
            while lines := await runs.lines_after(self._plane, run_id, self._position):
                self._advance(lines)
            if state["status"] in OUTCOMES:
                if not self._screen.as_json:
                    self._screen.remark_line(outcome(self._screen.error_look, self._run["run"], state))
                return OUTCOMES[state["status"]]
            await anyio.sleep(POLL_SECONDS)

    def _advance(self, lines: list[Row]) -> None:
        _print(self._screen, [line for line in lines if self._levels is None or line["level"] in self._levels])
        self._position = self._position.after(lines)


def _print(screen: Screen, lines: list[Row]) -> None:
    if screen.as_json:
        screen.json_lines(plain(lines))
    else:
        screen.lines(log_line(screen.look, line, short=screen.look.terminal) for line in lines)


async def wait(call: Invocation) -> int:
    """Waits until a run has ended, prints how, and exits by its outcome."""
    screen = Screen(as_json=call.options["json"])
    limit = call.options["timeout"]
    async with control_plane(call, screen, patient=True) as plane:
        run = await find_run(plane, call.arguments[0])
        with anyio.move_on_after(limit) as scope:
            await _ended(plane, run)
        if scope.cancelled_caught:
            raise Failed(TIMED_OUT, f"--timeout: {run['run']} has not ended within {limit:g} s; it continues")
        run = await find_run(plane, str(run["run_id"]))
    if screen.as_json:
        screen.json(run)
    else:
        screen.lines([outcome(screen.look, run["run"], run)])
    return OUTCOMES[run["status"]]


async def _ended(plane: ControlPlane, run: Row) -> None:
    while True:
        state = await runs.status(plane, run["run_id"])
        if state is None:
            raise Failed(NOT_FOUND, f"RUN: {run['run']} was deleted")
        if state["status"] in OUTCOMES:
            return
        await anyio.sleep(POLL_SECONDS)
