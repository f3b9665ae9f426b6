"""The database's side of the demo: the project and its workflows, the runs, and what is to be read of them.

All of it is plain SQL that any client of the control plane could send.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from worker.database import migrations, roles
from worker.database.connection import connected

DATABASE = "ops"
WORKER = "demo_worker"
FINAL = ("succeeded", "failed", "canceled")
NEXT_VERSION = "19.0"
JOURNAL_END = 2**40
"""Lines of a container's journal have lower numbers than this."""

PROJECT = {
    "workspace_key": "library",
    "slug": "library",
    "name": "City library",
    "odoo_version": "18.0",
    "config": {"modules": ["base", "mail", "library_loans"]},
}
TOOL_CONFIG = {
    "network": "none",
    "read_only": True,
    "timeout_seconds": 300,
    "resources": {"cpus": 1, "memory": "512m", "pids": 200},
}


@dataclass(frozen=True)
class Job:
    """One of the demo's workflows, and how its run is expected to end."""

    workflow_type: str
    name: str
    description: str
    config: Mapping[str, Any] = field(default_factory=dict)
    connected: bool = False
    exit_code: int = 0

    @property
    def status(self) -> str:
        """The expected final status."""
        return "failed" if self.exit_code else "succeeded"


BUILD = Job("build", "build", "Check and pack the add-on")
TEST = Job("test", "test", "Run the add-on's unit tests")
DEFECT = Job(
    "test",
    "test (broken)",
    "The same tests, with a defect put in on purpose",
    {"env": {"DEMO_BREAK": "1"}},
    exit_code=1,
)
BACKUP = Job(
    "backup",
    "backup",
    "Dump the project's database and prove that it restores",
    {"run_env": ["PGHOST", "PGDATABASE", "PGUSER", "PGPASSWORD"]},
    connected=True,
)
UPGRADE = Job(
    "upgrade", "upgrade", "What to mind on the way to the next Odoo", {"run_env": ["TARGET_VERSION", "ADVISORIES"]}
)
DEPLOY = Job(
    "deploy",
    "deploy",
    "Fetch the build's package, check and unpack it",
    {"run_env": ["PACKAGE_URL", "MANIFEST_SHA256", "PREVIOUS_URL", "PREVIOUS_SHA256"]},
    connected=True,
)
JOBS = (BUILD, TEST, DEFECT, BACKUP, UPGRADE, DEPLOY)

ADVISORIES = (
    {
        "severity": "high",
        "title": "SQL constraints are declared as attributes",
        "description": "`_sql_constraints` is no longer read: its constraints are not created.",
        "migration_guide": "Declare models.Constraint('unique (isbn)', 'message') as an attribute of the model.",
    },
    {
        "severity": "medium",
        "title": "Groups are read by other methods",
        "description": "`read_group` is deprecated.",
        "migration_guide": "Use _read_group in Python, formatted_read_group for clients.",
    },
    {
        "severity": "medium",
        "title": "A user's groups are in another field",
        "description": "`groups_id` of res.users is renamed.",
        "migration_guide": "Write group_ids.",
    },
    {
        "severity": "high",
        "title": "Employment contracts are part of the employee",
        "description": "The module hr_contract is merged into hr.",
        "migration_guide": "Depend on hr and use its versions of an employee.",
        "affects_modules": ["hr_contract"],
    },
)


@dataclass(frozen=True)
class RunView:
    """A run as it stands in the database. Times in seconds."""

    run_id: uuid.UUID
    number: int
    status: str
    exit_code: int | None
    error_message: str | None
    waited: float
    took: float | None
    lines: int
    warnings: int
    errors: int
    last_line: str

    @property
    def final(self) -> bool:
        return self.status in FINAL


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact as the database knows it, and the file that it says it is."""

    name: str
    path: Path
    size: int
    checksum: str

    def problem(self) -> str | None:
        """What is wrong with the file, if anything is."""
        if not self.path.is_file():
            return f"{self.path} is missing"
        content = self.path.read_bytes()
        if len(content) != self.size or f"sha256:{hashlib.sha256(content).hexdigest()}" != self.checksum:
            return f"{self.path} is not what the database says"
        return None


async def prepare(server: str, url: str) -> tuple[int, str | None]:
    """Makes the database where it is missing, and migrates it.

    Returns how many steps that took, and the identity of the older database that had to go, if one had: one whose
    migrations were edited since, as only an unreleased schema may be.
    """
    dropped = None
    if await exists(server) and (dropped := await _outdated(url)):
        await _execute(server, f"drop database {DATABASE} with (force)")
    await create(server)
    async with connected(url) as connection:
        return len(await migrations.migrate(connection)), dropped


async def exists(server: str) -> bool:
    """Whether the server has the demo's database."""
    db = await asyncpg.connect(server)
    try:
        return bool(await db.fetchval("select true from pg_database where datname = $1", DATABASE))
    finally:
        await db.close()


async def create(server: str) -> None:
    """Makes the demo's database where it is missing."""
    if not await exists(server):
        await _execute(server, f"create database {DATABASE}")


async def _execute(server: str, statement: str) -> None:
    db = await asyncpg.connect(server)
    try:
        await db.execute(statement)
    finally:
        await db.close()


async def worker_url(url: str) -> str:
    """The database's URL for the worker, which logs in with a role of its own as on any build host."""
    password = roles.new_password()
    async with connected(url) as connection:
        await roles.create_worker(connection, WORKER, password)
        owner = await connection.fetchval("select current_user")
    return roles.login_url(url, owner, WORKER, password)


async def _outdated(url: str) -> str | None:
    """The identity of a database with migrations that read otherwise today, else None."""
    async with connected(url) as connection:
        if not await connection.fetchval("select to_regclass($1)", migrations.HISTORY):
            return None
        rows = await connection.fetch(f"select version, statements from {migrations.HISTORY}")  # noqa: S608 - a constant
        applied = {row["version"]: row["statements"] for row in rows}
        if all(
            applied[each.version] == each.statements for each in migrations.read_migrations() if each.version in applied
        ):
            return None
        known = await connection.fetchval("select to_regclass('ops_private.control') is not null")
        found = await connection.fetchval("select database_id from ops_private.control") if known else "unknown"
        return str(found)


@asynccontextmanager
async def connect(url: str, store: Path) -> AsyncIterator[ControlPlane]:
    """A connection to the database; ``store`` is the folder that the worker puts artifacts into."""
    db = await asyncpg.connect(url)
    try:
        await db.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        yield ControlPlane(db, store)
    finally:
        await db.close()


class ControlPlane:
    """What the demo asks of the database."""

    def __init__(self, db: asyncpg.Connection, store: Path) -> None:
        self._db = db
        self._store = store
        self._project: uuid.UUID | None = None
        self._workflows: dict[str, uuid.UUID] = {}

    async def register(self, image: str, network: str, git_commit: str | None) -> None:
        """Registers the tool, the project with its workflows, and the advisories, or brings them up to date."""
        async with self._db.transaction():
            await self._db.execute(
                "insert into ops.tools (tool_name, version, docker_image, config) values ('demo', $1, $2, $3)"
                " on conflict (tool_name, version)"
                " do update set docker_image = excluded.docker_image, config = excluded.config",
                PROJECT["odoo_version"], image, TOOL_CONFIG,
            )  # fmt: skip
            self._project = await self._db.fetchval(
                "insert into ops.projects (workspace_key, slug, name, odoo_version, config)"
                " values ($1, $2, $3, $4, $5)"
                " on conflict (slug) do update set config = excluded.config returning id",
                *PROJECT.values(),
            )
            for job in JOBS:
                config = {"tool": "demo", **({"network": network} if job.connected else {}), **job.config}
                self._workflows[job.name] = await self._db.fetchval(
                    "insert into ops.workflows"
                    " (project_id, workflow_type, name, description, git_ref, git_commit, config)"
                    " values ($1, $2, $3, $4, 'main', $5, $6) on conflict (project_id, workflow_type, name)"
                    " do update set git_commit = excluded.git_commit, config = excluded.config returning id",
                    self._project, job.workflow_type, job.name, job.description, git_commit, config,
                )  # fmt: skip
            for advisory in ADVISORIES:
                await self._db.execute(
                    "insert into ops.upgrade_advisories (from_version, to_version, severity, title, description,"
                    " migration_guide, affects_modules) select $1, $2, $3, $4, $5, $6, $7"
                    " where not exists (select from ops.upgrade_advisories where title = $4)",
                    PROJECT["odoo_version"], NEXT_VERSION, advisory["severity"], advisory["title"],
                    advisory["description"], advisory["migration_guide"], advisory.get("affects_modules", []),
                )  # fmt: skip

    async def applicable_advisories(self) -> list[dict[str, Any]]:
        """Those from the project's version to the next that concern the modules it has; the gravest first."""
        rows = await self._db.fetch(
            "select a.severity, a.title, a.description, a.migration_guide"
            " from ops.upgrade_advisories as a join ops.projects as p on p.odoo_version = a.from_version"
            " where p.id = $1 and a.to_version = $2 and (a.affects_modules = '{}'"
            "  or a.affects_modules && array(select jsonb_array_elements_text(p.config -> 'modules')))"
            " order by array_position(array['critical', 'high', 'medium', 'low'], a.severity), a.title",
            self._project, NEXT_VERSION,
        )  # fmt: skip
        return [dict(row) for row in rows]

    async def queue(self, job: Job, env: Mapping[str, str] | None = None) -> tuple[uuid.UUID, int]:
        """Queues a run; returns its id and number."""
        row = await self._db.fetchrow(
            "insert into ops.runs (project_id, workflow_id, status, metadata) values ($1, $2, 'queued', $3)"
            " returning id, run_number",
            self._project, self._workflows[job.name], {"env": dict(env or {})},
        )  # fmt: skip
        return row["id"], row["run_number"]

    async def runs(self, run_ids: Iterable[uuid.UUID]) -> list[RunView]:
        """Those runs as they stand, by number."""
        rows = await self._db.fetch(
            "select r.id, r.run_number, r.status, r.exit_code, r.error_message,"
            " extract(epoch from coalesce(r.started_at, r.finished_at, clock_timestamp()) - r.created_at)::float8,"
            " extract(epoch from coalesce(r.finished_at, clock_timestamp()) - r.started_at)::float8,"
            " l.lines, l.warnings, l.errors, coalesce(l.last_line, '')"
            " from ops.runs as r cross join lateral ("
            "  select count(*) as lines, count(*) filter (where log_level = 'warn') as warnings,"
            "   count(*) filter (where log_level = 'error') as errors,"
            "   (array_agg(message order by seq desc))[1] as last_line"
            "  from ops.run_logs where run_id = r.id) as l"
            " where r.id = any ($1) order by r.run_number",
            list(run_ids),
        )
        return [RunView(*row) for row in rows]

    async def artifacts(self, run_id: uuid.UUID) -> list[StoredArtifact]:
        """What the run left, by name."""
        rows = await self._db.fetch(
            "select artifact_key, size_bytes, checksum from ops.run_artifacts where run_id = $1 order by artifact_key",
            run_id,
        )
        return [StoredArtifact(Path(row[0]).name, self._store / row[0], row[1], row[2]) for row in rows]

    async def last_deployment(self) -> StoredArtifact | None:
        """What the latest successful deployment before this one says of itself."""
        run_id = await self._db.fetchval(
            "select id from ops.runs where workflow_id = $1 and status = 'succeeded' order by run_number desc limit 1",
            self._workflows[DEPLOY.name],
        )
        found = await self.artifacts(run_id) if run_id else []
        return next((each for each in found if each.name == "deployment.json" and each.path.is_file()), None)

    async def log_is_whole(self, run_id: uuid.UUID) -> bool:
        """Whether the lines of the run's journal are numbered 1 to n."""
        found = await self._db.fetchval(
            "select count(*) > 0 and min(seq) = 1 and max(seq) = count(*) from ops.run_logs"
            " where run_id = $1 and seq < $2",
            run_id, JOURNAL_END,
        )  # fmt: skip
        return bool(found)

    async def end_leftovers(self) -> None:
        """Cancels what an earlier demo left that was killed."""
        await self._db.fetch("select ops.reap()")
        await self._db.fetch(
            "select ops.cancel_run(id, 'left by an earlier demo') from ops.runs"
            " where status in ('queued', 'claimed', 'running')"
        )

    async def database_id(self) -> str:
        """Which database this is, as its runs' containers are labelled."""
        return str(await self._db.fetchval("select database_id from ops_private.control"))

    async def cancel(self, run_ids: Sequence[uuid.UUID]) -> None:
        """Asks for the end of those runs."""
        await self._db.fetch("select ops.cancel_run(id) from unnest($1::uuid[]) as id", list(run_ids))
