"""The commands for a person, run in this process with the URL of an operator, a member or a stranger."""

from __future__ import annotations

import io
import json
import uuid
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from worker.cli.parser import parse
from worker.errors import OpsError


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output as JSON; it succeeded and had no remark."""
        assert (self.status, self.err) == (0, "")
        return json.loads(self.out)


def as_role(url: str, role: str, user: uuid.UUID | None = None) -> str:
    """The URL of the database, for a login that has that role and, if given, acts for that user."""
    claim = f" -c request.jwt.claim.sub={user}" if user else ""
    return f"{url}&options={quote(f'-c role={role}{claim}')}"


async def ops(url: str, *argv: str) -> Said:
    """``ops-worker`` with these words."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            call = parse(argv, {"OPS_WORKER_DATABASE_URL": url})
            status = await call.command.run(call)
        except OpsError as error:
            status = error.status
            err.write(f"{error}\n")
    return Said(status, out.getvalue(), err.getvalue())
