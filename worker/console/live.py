"""The log of a run: pages of it by number, what a search finds, its groups, and its growth while the run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import anyio
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from worker.cli.options import FINAL
from worker.cli.render import iso, safe
from worker.console.auth import Caller
from worker.console.bounds import Streams
from worker.console.shown import GROUP, log_lines
from worker.console.visit import console_of, run_of, visit
from worker.database import builds, runs
from worker.database.control_plane import Row
from worker.database.runs import APPENDED
from worker.errors import OpsError

PAGE = 1000
"""Lines of one answer at most."""

FOUND = 200
FOUND_LEVELS = ("warn", "error")
"""The levels that a reader looks for: most lines have another one."""

GROUP_MARKS = 5000
POLL_SECONDS, QUIET_SECONDS = 0.4, 15.0
"""Between two looks at a run that goes on, and after how long without news the stream says that it is there."""

MOST_STREAM_SECONDS = 3600.0
"""Then the browser asks again, and must still be signed in."""

MOST_SEQ = 2**62
log = structlog.get_logger()


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 19):  # noqa: PLR2004 - below 2 ** 63
        raise HTTPException(400, f"{name}: expected a whole number.")
    return min(int(text), MOST_SEQ)


async def lines(request: Request) -> Response:
    """Lines of the log as JSON: those from ``from`` to ``to``, or those that a client appended behind ``after``.

    ``gap`` names the first and the last line around a line that is not stored, as far as nothing is stored.
    """
    if "after" in request.query_params:
        return await _appended(request)
    first = max(_number(request, "from", 1), 1)
    last = min(_number(request, "to", first + PAGE - 1), first + PAGE - 1, APPENDED - 1)
    async with visit(request) as (plane, _):
        run_id = (await run_of(plane, request))["run_id"]
        found = await builds.lines_between(plane, run_id, first, last)
        missing = _first_missing([line["seq"] for line in found], first, last)
        gap = None
        if missing is not None:
            before, after = await builds.neighbours(plane, run_id, missing)
            gap = [before + 1, after - 1] if after else None
    return JSONResponse({"lines": log_lines(found), "gap": gap})


def _first_missing(numbers: list[int], first: int, last: int) -> int | None:
    """The first number of the page that is not stored."""
    for place, number in enumerate(numbers, first):
        if number != place:
            return place
    return None if len(numbers) == last - first + 1 else first + len(numbers)


async def _appended(request: Request) -> Response:
    after = max(_number(request, "after", 0), APPENDED - 1)
    async with visit(request) as (plane, _):
        run_id = (await run_of(plane, request))["run_id"]
        found = await builds.lines_from(plane, run_id, after + 1, PAGE)
    return JSONResponse({"lines": log_lines(found), "gap": None})


async def found(request: Request) -> Response:
    """The lines that full-text search finds (``q``), or warnings and errors (``level``), at most ``FOUND``."""
    words, level = request.query_params.get("q", "").strip(), request.query_params.get("level", "")
    if not words and level not in FOUND_LEVELS:
        raise HTTPException(400, f"level: expected one of {', '.join(FOUND_LEVELS)}; or q, the words of a search.")
    async with visit(request) as (plane, _):
        run_id = (await run_of(plane, request))["run_id"]
        if words:
            rows = [
                row | {"message": row["message"][: builds.SHOWN_CHARACTERS], "size": len(row["message"])}
                for row in await runs.search(plane, run_id, words[:200], FOUND)
            ]
        else:
            above = FOUND_LEVELS[FOUND_LEVELS.index(level) :]
            rows = await builds.lines_of_levels(plane, run_id, above, _number(request, "after", 0), FOUND)
    return JSONResponse({"lines": log_lines(rows), "more": len(rows) == FOUND})


async def groups(request: Request) -> Response:
    """The groups of the log: first and last line, title. A group that does not end goes on to the next one."""
    async with visit(request) as (plane, _):
        run_id = (await run_of(plane, request))["run_id"]
        marks = await builds.group_marks(plane, run_id, GROUP_MARKS)
    return JSONResponse({"groups": paired(marks)})


def paired(marks: list[Row]) -> list[dict[str, object]]:
    """The groups by their marks. They do not nest: a new one ends the one before, as on GitHub."""
    closed: list[dict[str, object]] = []
    begun: Row | None = None
    for mark in marks:
        begins = mark["message"].startswith(GROUP)
        if begun is not None:
            last = mark["seq"] - 1 if begins else mark["seq"]
            closed.append({"first": begun["seq"], "last": last, "title": safe(begun["message"].removeprefix(GROUP))})
        begun = mark if begins else None
    if begun is not None:
        closed.append({"first": begun["seq"], "last": None, "title": safe(begun["message"].removeprefix(GROUP))})
    return closed


async def whole_log(request: Request) -> Response:
    """The log as text, each line with its time and level; ``from`` and ``to`` choose lines."""
    first, last = max(_number(request, "from", 1), 1), _number(request, "to", MOST_SEQ)
    console = console_of(request)
    async with visit(request) as (plane, caller):
        run = await run_of(plane, request)

    async def text() -> AsyncIterator[bytes]:
        position = first
        while position <= last:
            behind = runs.Position(position - 1, max(position, APPENDED) - 1)
            async with console.sessions.acting_for(caller.claims) as plane:
                some = await runs.lines_after(plane, run["run_id"], behind)
            some = [line for line in some if line["seq"] <= last]
            if not some:
                return
            yield "".join(f"{iso(it['timestamp'])} {it['level']:<5} {safe(it['message'])}\n" for it in some).encode()
            position = some[-1]["seq"] + 1

    name = f"{run['project']}-{run['run_number']}.log"
    headers = {"Content-Disposition": f'inline; filename="{name}"'}
    return StreamingResponse(text(), media_type="text/plain; charset=utf-8", headers=headers)


async def live(request: Request) -> Response:
    """Server-sent events about a run: its status and how far its log is, whenever that changes."""
    console = console_of(request)
    async with visit(request) as (plane, caller):
        run = await run_of(plane, request)
    owner = str((caller.claims or {}).get("sub") or (request.client.host if request.client else ""))
    console.streams.begin(owner)  # before the next await, so requests that arrive together are all counted
    return Followed(_news(request, run, caller), console.streams, owner)


class Followed(StreamingResponse):
    """Events to one user, who no longer counts when the response ends; also if its first event was never sent."""

    def __init__(self, events: AsyncIterator[bytes], streams: Streams, owner: str) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._streams = streams
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.end(self._owner)


async def _news(request: Request, run: Row, caller: Caller) -> AsyncIterator[bytes]:
    """The events until the run has ended, the user's token has expired, or the database cannot be reached."""
    sessions = console_of(request).sessions
    before, said, begun = "", time.monotonic(), time.monotonic()
    yield b"retry: 2000\n\n"
    while time.monotonic() - begun < MOST_STREAM_SECONDS:
        if caller.expires is not None and time.time() > caller.expires:
            yield b"event: signed-out\ndata: {}\n\n"
            return
        try:
            async with sessions.acting_for(caller.claims) as plane:
                state = await builds.progress(plane, run["run_id"])
        except OpsError as error:  # the browser asks again
            log.warning("live log interrupted", error=str(error))
            return
        if state is None:
            return
        now = json.dumps({name: state[name] for name in ("status", "printed", "appended")})
        if now != before:
            before, said = now, time.monotonic()
            yield f"event: {'end' if state['status'] in FINAL else 'state'}\ndata: {now}\n\n".encode()
        elif time.monotonic() - said > QUIET_SECONDS:
            said = time.monotonic()
            yield b": still here\n\n"
        if state["status"] in FINAL:
            return
        await anyio.sleep(POLL_SECONDS)
