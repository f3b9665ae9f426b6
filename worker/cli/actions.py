"""The commands that change a run: `runs enqueue`, `cancel`, `retry`, `approve`, `reject` and `known`.

Each is one call of a function of the control plane, which decides. Only the name of a new run is printed to stdout, so
that a script can use it: ``run=$(ops-worker runs enqueue acme/nightly)``.
"""

from __future__ import annotations

from typing import Any

from worker.cli.commands import Invocation
from worker.cli.render import safe
from worker.cli.screen import Screen
from worker.cli.session import control_plane, find_run, find_workflow
from worker.database import runs
from worker.database.control_plane import ControlPlane, Row


async def enqueue(call: Invocation) -> int:
    """Queues a run of a workflow and prints its name."""
    screen, options = Screen(as_json=call.options["json"]), call.options
    async with control_plane(call, screen) as plane:
        workflow_id = await find_workflow(plane, call.arguments[0])
        answer = await runs.enqueue(plane, workflow_id, metadata_of(call), options["key"], options["at"])
        run = await _new_run(plane, answer)
    _print_new(
        screen, run, answer, "queued" if answer["created"] else f"this key has queued it before; {run['status']}"
    )
    return 0


async def retry(call: Invocation) -> int:
    """Queues the next attempt of a run that has ended, and prints its name."""
    screen = Screen(as_json=call.options["json"])
    async with control_plane(call, screen) as plane:
        earlier = await find_run(plane, call.arguments[0])
        answer = await runs.retry(plane, earlier["run_id"])
        run = await _new_run(plane, answer)
    what = "queued" if answer["created"] else f"it exists already; {run['status']}"
    _print_new(screen, run, answer, f"attempt {run['attempt']} after {earlier['run']}: {what}")
    return 0


async def cancel(call: Invocation) -> int:
    """Cancels a run, or asks its worker to stop it."""
    screen = Screen(as_json=call.options["json"])
    async with control_plane(call, screen) as plane:
        run = await find_run(plane, call.arguments[0])
        answer = await runs.cancel(plane, run["run_id"], call.options["reason"])
    if screen.as_json:
        named = {name: run[name] for name in ("run_id", "run")}
        screen.json(named | {"status": answer["status"], "message": answer["message"]})
    else:
        screen.lines([f"{run['run']} {answer['status']}: {answer['message']}"])
    return 0


async def approve(call: Invocation) -> int:
    """Approves a run that waits for it."""
    return await _decide(call, approved=True)


async def reject(call: Invocation) -> int:
    """Rejects a run that waits for an approval: it is canceled."""
    return await _decide(call, approved=False)


async def _decide(call: Invocation, *, approved: bool) -> int:
    screen = Screen(as_json=call.options["json"])
    async with control_plane(call, screen) as plane:
        run = await find_run(plane, call.arguments[0])
        run_id = run["run_id"]
        answer = await (runs.approve(plane, run_id) if approved else runs.reject(plane, run_id, call.options["reason"]))
    if screen.as_json:
        screen.json({"run_id": run_id, "run": run["run"], "approval": answer["approval"], "changed": answer["changed"]})
    else:
        screen.lines([f"{run['run']} is {answer['approval']}" + ("" if answer["changed"] else ", as before")])
    return 0


async def known(call: Invocation) -> int:
    """Marks errors of a run as known in its project, or as no longer known."""
    screen, options = Screen(as_json=call.options["json"]), call.options
    _, fingerprint = (*call.arguments, None)[:2]
    async with control_plane(call, screen) as plane:
        run = await find_run(plane, call.arguments[0])
        answer = await runs.mark_known(plane, run["run_id"], fingerprint, options["note"], forget=options["forget"])
        errors = await runs.fingerprints(plane, run["run_id"])
    marked = [error for error in errors if error["fingerprint"] in answer["fingerprints"]]
    if screen.as_json:
        screen.json({"run_id": run["run_id"], "run": run["run"], "known": answer["known"], "errors": marked})
    else:
        screen.lines(safe(error["line"]) for error in marked)
    return 0


def metadata_of(call: Invocation) -> dict[str, Any]:
    """The metadata of the new run: ``--metadata``, and above it the keys that have an option of their own."""
    options = call.options
    given = {
        "git_ref": options["ref"],
        "git_commit": options["commit"],
        "args": list(options["arg"]),
        "env": dict(options["env"]),
    }
    return (options["metadata"] or {}) | {key: value for key, value in given.items() if value}


async def _new_run(plane: ControlPlane, answer: Row) -> Row:
    """The row of a run that was queued; what the function answered, if a later call has deleted it."""
    return await runs.by_id(plane, answer["run_id"]) or answer | {"run": str(answer["run_id"])}


def _print_new(screen: Screen, run: Row, answer: Row, remark: str) -> None:
    if screen.as_json:
        screen.json(run | {"created": answer["created"]})
    else:
        screen.lines([run["run"]])
        screen.remark(remark)
