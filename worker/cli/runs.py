"""The commands ``ops-worker runs list`` and ``runs show``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from worker.cli.commands import Invocation
from worker.cli.options import BAD
from worker.cli.render import LEVEL_STYLE, Cell, Look, iso, program_summary, safe, safe_lines, span_between, status_cell
from worker.cli.screen import Screen
from worker.cli.session import control_plane, find_project, find_run
from worker.database import runs
from worker.database.control_plane import ControlPlane, Row
from worker.model.reasons import EXPLANATIONS, Explanation

DEFAULT_ROWS = 20
LAST_LINES = 15
"""How many lines ``runs show`` prints of a run that failed."""

SUMMARY_LINES = 30
"""How many lines of a summary it prints."""


async def listed(call: Invocation) -> int:
    """Prints the newest runs."""
    screen = Screen(as_json=call.options["json"])
    limit = call.options["limit"] or DEFAULT_ROWS
    async with control_plane(call, screen) as plane:
        options = call.options
        if options["project"]:
            await find_project(plane, options["project"], "--project")
        found = await runs.listed(plane, options["project"], options["status"], options["workflow"], limit + 1)
    rows = found[:limit]
    if screen.as_json:
        screen.json(rows)
    else:
        urls = any(map(_url, rows))
        screen.table(
            ("RUN", "WORKFLOW", "STATUS", "REASON", "QUEUED", "TOOK", "WORKER", *(["URL"] if urls else [])),
            [
                (
                    row["run"], f"{row['workflow_type']}/{row['workflow']}", status_cell(row["status"]),
                    row["reason"] or "" if row["status"] in BAD else "ready" if _url(row) else "",
                    screen.look.moment(row["created_at"], screen.now),
                    span_between(row["started_at"], row["finished_at"], screen.now), row["claimed_by"] or "",
                    *([_url(row)] if urls else []),
                )
                for row in rows
            ],
        )  # fmt: skip
    screen.more(len(found) > limit, limit)
    return 0


def _url(run: Row) -> str:
    """Where a served run can be used now; empty if it cannot."""
    return run["url"] or "" if run["status"] == "running" else ""


async def show(call: Invocation) -> int:
    """Prints one run: if it failed, its last errors and what they mean come first."""
    screen = Screen(as_json=call.options["json"])
    async with control_plane(call, screen) as plane:
        run = await find_run(plane, call.arguments[0])
        run_id = run["run_id"]
        errors = await _last_errors(plane, run)
        history = [row | {"payload": json.loads(row["payload"])} for row in await runs.events(plane, run_id)]
        files = await runs.artifacts(plane, run_id)
        again = await runs.retries(plane, run_id)
        known = await runs.fingerprints(plane, run_id) if run["status"] in BAD else []
        summary = program_summary(await runs.summary(plane, run_id), known)
    explanation = EXPLANATIONS.get(run["reason"] or "") if run["status"] in BAD else None
    if screen.as_json:
        meaning = {"meaning": explanation and explanation.meaning, "advice": explanation and explanation.advice}
        lists = {"events": history, "artifacts": files, "retries": again}
        screen.json({**run, "fingerprints": known, "last_errors": errors, **meaning, "summary": summary, **lists})
        return 0
    screen.lines(
        (
            *_known_errors(screen.look, known),
            *_trouble(screen.look, run, errors, explanation),
            *_facts(screen, run, again),
            *_summary(screen.look, summary),
            *_listed(screen, "Events", [(iso(it["created_at"]), it["message"]) for it in history]),
            *_listed(screen, "Artifacts", [(f"{it['size_bytes'] or 0:,} bytes", it["artifact_url"]) for it in files]),
            "",
            f"The log: ops-worker runs logs {run['run']}",
        )
    )
    return 0


async def _last_errors(plane: ControlPlane, run: Row) -> list[Row]:
    """The last errors of a run that failed, and warnings where errors leave room; without both its last lines."""
    if run["status"] not in BAD:
        return []
    run_id = run["run_id"]
    if run["reason"] == "not_ready":  # what the program said last, not what it called an error, tells why
        return await runs.last_lines(plane, run_id, LAST_LINES)
    found = await runs.last_lines(plane, run_id, LAST_LINES, ["error"])
    if len(found) < LAST_LINES:
        found += await runs.last_lines(plane, run_id, LAST_LINES - len(found), ["warn"])
    return sorted(found, key=lambda it: it["seq"]) or await runs.last_lines(plane, run_id, LAST_LINES)


def _trouble(look: Look, run: Row, errors: Sequence[Row], explanation: Explanation | None) -> list[str]:
    """The last errors of a run that failed or was canceled, and what they mean."""
    if run["status"] not in BAD:
        return []
    lines = _failing_tests(look, run)
    if errors:
        shown = (f"  {log_line(look, line, short=True)}" for line in errors)
        lines += [look.styled("Last errors", "bold"), *shown, ""]
    message = safe_lines(run["error_message"] or "")
    lines += [look.styled(f"{run['run']} {run['status']}: {message[0] or safe(run['reason'])}", "red")]
    lines += [f"  {line}" for line in message[1:]]
    if explanation is not None:
        lines += [f"  {run['reason']}: {explanation.meaning}.", f"  {explanation.advice}"]
    return [*lines, ""]


def _known_errors(look: Look, known: Sequence[Row]) -> list[str]:
    """Since which run each error is known, and how often it occurred."""
    if not known:
        return []
    return [look.styled("New or known", "bold"), *(f"  {safe(error['line'])}" for error in known), ""]


def _failing_tests(look: Look, run: Row) -> list[str]:
    """The names of the first tests that failed."""
    tests = run["tests"] or {}
    names = tests.get("failing") or []
    if not names:
        return []
    more = tests["failed"] - len(names)
    rest = [f"  and {more} more"] if more > 0 else []
    return [look.styled("Failing tests", "bold"), *(look.styled(f"  {safe(name)}", "red") for name in names), *rest, ""]


def _summary(look: Look, text: str | None) -> list[str]:
    """The first lines of the summary that the program wrote."""
    if not text:
        return []
    lines = safe_lines(text.rstrip("\n"))
    more = len(lines) - SUMMARY_LINES
    rest = [f"  and {more} more lines, in summary.md of its artifacts"] if more > 0 else []
    return ["", look.styled("Summary", "bold"), *(f"  {line}" for line in lines[:SUMMARY_LINES]), *rest]


def _test_counts(run: Row) -> str:
    tests = run["tests"]
    return "" if tests is None else ", ".join(f"{tests[name]} {name}" for name in ("passed", "failed", "skipped"))


def _facts(screen: Screen, run: Row, again: Sequence[Row]) -> list[str]:
    now, look = screen.now, screen.look

    def when(name: str) -> str:
        return iso(run[name]) if run[name] else ""

    return look.fields(
        [
            ("Run", f"{run['run']} ({run['run_id']})"),
            ("Workflow", f"{run['workflow_type']}/{run['workflow']}"),
            ("Status", status_cell(run["status"])),
            ("Reason", run["reason"] or ""),
            ("Exit code", "" if run["exit_code"] is None else str(run["exit_code"])),
            ("Attempt", str(run["attempt"]) if run["attempt"] > 1 or again else ""),
            ("Retry of", str(run["retry_of"] or "")),
            ("Follows", str(run["parent_run_id"] or "")),
            ("Approval", run["approval"] or ""),
            ("Retried as", ", ".join(f"{it['run']} {it['status']}" for it in again)),
            ("Queued", when("created_at")),
            ("Due", when("scheduled_at")),
            ("Wanted until", when("wanted_until") if run["status"] == "queued" else ""),
            ("Started", when("started_at")),
            ("Ready", when("ready_at")),
            ("URL", _url(run)),
            ("Finished", when("finished_at")),
            ("Took", span_between(run["started_at"], run["finished_at"], now)),
            ("Worker", run["claimed_by"] or ""),
            ("Tests", _test_counts(run)),
            ("Log", ", ".join(f"{name}: {run[name]}" for name in ("errors", "warnings") if run[name])),
            ("Labels", ", ".join(run["labels"])),
            ("Queued by", str(run["created_by"] or "")),
            ("Cancel asked", when("cancel_requested_at")),
        ]
    )


def _listed(screen: Screen, title: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    if not pairs:
        return []
    width = max(len(first) for first, _ in pairs)
    lines = (f"  {first:<{width}}  {safe(second)}" for first, second in pairs)
    return ["", screen.look.styled(title, "bold"), *lines]


def log_line(look: Look, line: Row, *, short: bool) -> str:
    """A line of a log. ``short``: with the time of day instead of the full time, and without the level."""
    style = LEVEL_STYLE.get(line["level"], "")
    message = look.styled(safe(line["message"]), style)
    if short:
        return f"{look.styled(line['timestamp'].strftime('%H:%M:%S'), 'dim')} {message}"
    return f"{iso(line['timestamp'])} {line['level']:<5} {message}"


def outcome(look: Look, run: str, state: Row) -> str:
    """The last line about a run that has ended: its status, reason and message."""
    said = safe(state["error_message"] or "") or (state["reason"] if state["status"] in BAD else "") or ""
    shown = Cell(f"{run} {state['status']}", status_cell(state["status"]).style)
    return look.styled(shown.text, shown.style) + (f": {said}" if said else "")
