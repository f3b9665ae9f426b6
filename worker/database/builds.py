"""Queries of the console: the newest runs of each branch, and pages of a log. Row policies decide what a user sees."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from worker.database.control_plane import ControlPlane, Row
from worker.database.runs import APPENDED

SHOWN_CHARACTERS = 4000
"""Characters of a line that a page shows; ``size`` says how many the line has."""

_LINE = f"""seq, "timestamp", log_level as level, left(message, {SHOWN_CHARACTERS}) as message,
    length(message) as size"""


async def newest(plane: ControlPlane, projects: Sequence[str], limit: int) -> list[Row]:
    """The newest runs of each of these projects, at most ``limit`` each, the newest first; ``ref`` is the branch."""
    return await plane.rows(
        """select p.slug as project, r.*
           from ops.projects as p
           cross join lateral (
               select r.run_number, w.workflow_type, w.name as workflow, r.status, r.warnings, r.errors, r.created_at,
                   r.scheduled_at, r.started_at, r.finished_at,
                   coalesce(nullif(r.metadata ->> 'git_ref', ''), w.git_ref, '') as ref
               from ops.runs as r join ops.workflows as w on w.id = r.workflow_id
               where r.project_id = p.id order by r.run_number desc limit $2
           ) as r
           where p.slug = any ($1) order by p.slug, r.run_number desc""",
        projects, limit,
    )  # fmt: skip


async def source(plane: ControlPlane, run_id: uuid.UUID) -> Row:
    """Branch and commit of a run, and what the claims of its user may do in its project."""
    found = await plane.row(
        """select coalesce(nullif(r.metadata ->> 'git_ref', ''), w.git_ref, '') as ref,
               coalesce(nullif(r.metadata ->> 'git_commit', ''),
                   case when r.metadata ->> 'git_ref' is null then w.git_commit end, '') as "commit",
               ops.current_user_role(r.project_id) as role, ops.current_user_id() as user_id
           from ops.runs as r join ops.workflows as w on w.id = r.workflow_id where r.id = $1""",
        run_id,
    )
    return found or {"ref": "", "commit": "", "role": None, "user_id": None}


async def progress(plane: ControlPlane, run_id: uuid.UUID) -> Row | None:
    """The state of a run, and the number of the last line that the container printed and that a client appended."""
    return await plane.row(
        f"""select r.status,
                coalesce((select g.seq from ops.run_logs as g where g.run_id = r.id and g.seq < {APPENDED}
                    order by g.seq desc limit 1), 0) as printed,
                coalesce((select g.seq from ops.run_logs as g where g.run_id = r.id and g.seq >= {APPENDED}
                    order by g.seq desc limit 1), 0) as appended
            from ops.runs as r where r.id = $1""",  # noqa: S608 - numbers of ours
        run_id,
    )


async def lines_between(plane: ControlPlane, run_id: uuid.UUID, first: int, last: int) -> list[Row]:
    """The stored lines with these numbers; the caller bounds how many that can be."""
    return await plane.rows(
        f"""select {_LINE} from ops.run_logs
            where run_id = $1 and seq between $2 and $3 order by seq""",  # noqa: S608 - columns of ours
        run_id, first, last,
    )  # fmt: skip


async def lines_from(plane: ControlPlane, run_id: uuid.UUID, first: int, limit: int) -> list[Row]:
    """The next stored lines from that number on."""
    return await plane.rows(
        f"""select {_LINE} from ops.run_logs
            where run_id = $1 and seq >= $2 order by seq limit $3""",  # noqa: S608 - columns of ours
        run_id, first, limit,
    )  # fmt: skip


async def neighbours(plane: ControlPlane, run_id: uuid.UUID, seq: int) -> tuple[int, int]:
    """The last stored number below ``seq`` (0: none), and the first one above it (0: none), of what was printed."""
    found = await plane.row(
        f"""select coalesce((select g.seq from ops.run_logs as g where g.run_id = $1 and g.seq < $2
                    order by g.seq desc limit 1), 0) as before,
                coalesce((select g.seq from ops.run_logs as g where g.run_id = $1 and g.seq > $2 and g.seq < {APPENDED}
                    order by g.seq limit 1), 0) as after""",  # noqa: S608 - numbers of ours
        run_id, seq,
    )  # fmt: skip
    return (found or {})["before"], (found or {})["after"]


async def lines_of_levels(
    plane: ControlPlane, run_id: uuid.UUID, levels: Sequence[str], after: int, limit: int
) -> list[Row]:
    """The next lines of these levels behind that number; of ``warn`` and ``error``, which have an index."""
    return await plane.rows(
        f"""select {_LINE} from unnest($3::text[]) as l (level)
            cross join lateral (
                select g.* from ops.run_logs as g
                where g.run_id = $1 and g.seq > $2 and g.log_level = l.level and g.log_level in ('warn', 'error')
                order by g.seq limit $4
            ) as g
            order by seq limit $4""",  # noqa: S608 - columns of ours
        run_id, after, levels, limit,
    )  # fmt: skip


async def group_marks(plane: ControlPlane, run_id: uuid.UUID, limit: int) -> list[Row]:
    """The lines that begin or end a group, as GitHub's runners and many tools print them. They have an index."""
    return await plane.rows(
        f"""select seq, left(message, 200) as message from ops.run_logs
            where run_id = $1 and seq < {APPENDED} and (message like '::group::%' or message like '::endgroup::%')
            order by seq limit $2""",  # noqa: S608 - numbers of ours
        run_id, limit,
    )  # fmt: skip
