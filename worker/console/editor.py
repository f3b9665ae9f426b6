"""The pages that add a project and edit one: a text as ``ops-worker projects sync`` takes it.

text → check: a dry run, and what it would change → apply, of exactly the text that was checked
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from worker.console.visit import caller_of, page, status_of, submission, visit
from worker.database import projects
from worker.database.control_plane import Row
from worker.errors import Refused, SpecError
from worker.model.project import project_of
from worker.model.toml import written

MOST_TEXT = 1 << 18
"""Bytes of the form with a description."""

EXAMPLE = """\
slug = "shop"                 # names the project for ever
name = "Shop"
odoo_version = "19.0"

[config.push]                 # what a push of each branch starts
repository = "acme/shop"
branches = [{match = "main", run = ["unit"]}]

[[workflows]]
workflow_type = "test"
name = "unit"

[workflows.config]
tool = "odoo"
version = "19.0"
"""


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of a text: the answer of the dry run, or why it is refused, with the status of the page."""

    answer: Row | None = None
    problem: str = ""
    status: int = 200


async def add(request: Request) -> Response:
    """The page to add a project, with an example."""
    return await _shown(request, None, EXAMPLE, Checked())


async def edit(request: Request) -> Response:
    """The page to edit a project, with its description as it is."""
    slug = request.path_params["project"]
    async with visit(request) as (plane, _):
        found = await projects.described(plane, slug)
    if found is None:
        raise HTTPException(404, "There is no such project, or you may not see it.")
    return await _shown(request, slug, written(found), Checked())


async def submit(request: Request) -> Response:
    """Checks the text of the form, or applies it. A text that is refused is shown again, with the reason."""
    slug, text = request.path_params.get("project"), ""
    try:
        async with submission(request, most=MOST_TEXT) as (plane, fields):
            text, dry_run = fields.get("text", "").replace("\r\n", "\n"), fields.get("do") != "apply"
            answer = await projects.sync_project(plane, _read(text, slug), dry_run=dry_run)
    except SpecError as error:
        return await _shown(request, slug, text, Checked(problem=f"{error}.", status=400))
    except Refused as error:
        return await _shown(request, slug, text, Checked(problem=f"{error}.", status=status_of(error.code)))
    if dry_run:
        return await _shown(request, slug, text, Checked(answer))
    return RedirectResponse(f"/projects/{quote(answer['project']['slug'])}", 303)


def _read(text: str, slug: str | None) -> Row:
    """The description in a text; it must be that of the project which the page edits. Raises ``SpecError``."""
    description = project_of(text)
    if slug is not None and description.get("slug") != slug:
        raise SpecError("invalid_config", "slug", f'slug: expected "{slug}", the project that this page edits')
    return description


async def _shown(request: Request, slug: str | None, text: str, checked: Checked) -> Response:
    caller = await caller_of(request)
    answer = checked.answer
    changes = [] if answer is None else projects.changes(answer)
    return page(
        request, "editor.html", caller, status=checked.status, slug=slug, text=text, problem=checked.problem,
        checked=answer is not None, changes=changes, same=all(row["change"] == "unchanged" for row in changes),
        missing=[] if answer is None else sorted(projects.missing_tools(answer)),
    )  # fmt: skip
