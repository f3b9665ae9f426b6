"""The command ``ops-worker drain``: takes a host out, and back in."""

from __future__ import annotations

import anyio

from worker.cli.commands import Invocation
from worker.cli.render import safe
from worker.cli.screen import Screen
from worker.cli.session import TIMED_OUT, control_plane
from worker.database import projects
from worker.database.control_plane import ControlPlane
from worker.errors import Failed, UsageError

POLL_SECONDS = 1.0


async def drain(call: Invocation) -> int:
    """Lets a worker claim no more runs, or with ``--undo`` claim again; ``--wait`` waits until its runs have ended."""
    screen, options, worker = Screen(as_json=call.options["json"]), call.options, call.arguments[0]
    _check(call)
    async with control_plane(call, screen, patient=options["wait"]) as plane:
        answer = await projects.drain_worker(plane, worker, options["reason"], drain=not options["undo"])
        runs = answer["runs"]
        if options["wait"] and runs:
            if not screen.as_json:
                screen.remark(f"{worker} claims nothing more; waiting for {_runs(runs)} to end")
            with anyio.move_on_after(options["timeout"]) as scope:
                await _ended(plane, worker)
            if scope.cancelled_caught:
                limit = options["timeout"]
                raise Failed(TIMED_OUT, f"--timeout: {safe(worker)} has runs after {limit:g} s; it is still drained")
            runs = 0
    if screen.as_json:
        named = {name: answer[name] for name in ("draining", "changed")}
        screen.json({"worker_id": worker, **named, "runs": runs})
    else:
        before = "" if answer["changed"] else ", as before"
        screen.lines([f"{safe(worker)} {_state(runs, drained=answer['draining'])}{before}"])
    return 0


def _check(call: Invocation) -> None:
    options = call.options
    other = next((name for name in ("wait", "reason") if options[name]), None)
    if options["undo"] and other is not None:
        raise UsageError(f"--undo: does not go with --{other}; expected one of the two")
    if options["timeout"] and not options["wait"]:
        raise UsageError("--timeout: expected --wait with it")


def _state(runs: int, *, drained: bool) -> str:
    if not drained:
        return "is not drained: it claims runs"
    return f"is draining: {_runs(runs)} left" if runs else "is drained: it has no runs"


def _runs(number: int) -> str:
    return f"{number} run{'' if number == 1 else 's'}"


async def _ended(plane: ControlPlane, worker: str) -> None:
    """Waits until the worker has no runs."""
    while await projects.held_runs(plane, worker):  # noqa: ASYNC110 - the database has no event for it
        await anyio.sleep(POLL_SECONDS)
