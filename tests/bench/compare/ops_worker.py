"""ops-worker itself, from this checkout."""

from __future__ import annotations

import json
import subprocess

from tests.bench.compare.bench import Bench, Peer, Seen, Site

REGISTER = """
with tool as (
    insert into ops.tools (tool_name, version, docker_image) values ('shell', '1', $1)
), project as (
    insert into ops.projects (workspace_key, slug, name, odoo_version) values ('acme', 'acme', 'Acme', '18.0')
    returning id
)
insert into ops.workflows (project_id, workflow_type, name, config)
select id, 'test', 'count', $2::jsonb from project
"""


class OpsWorker(Site):
    """The daemon on the host, the job in a container."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.environ = {"OPS_WORKER_DATABASE_URL": bench.url(), "OPS_WORKER_LOG_FORMAT": "json"}

    def prepare(self) -> None:
        self.bench.run("ops-worker", "db", "migrate", **self.environ)
        config = {"tool": "shell", "version": "1", "command": self.bench.command}
        self.bench.rows(REGISTER, self.bench.image, json.dumps(config))

    def start_worker(self) -> subprocess.Popen[bytes]:
        store = f"file://{self.bench.folder}/artifacts"
        return self.bench.spawn(
            "ops-worker", "--artifact-store", store, "--worker-id", "host", COMPARE_WORKER="1", **self.environ
        )

    def submit(self) -> None:
        self.bench.rows(
            "insert into ops.runs (project_id, workflow_id, status) select project_id, id, 'queued' from ops.workflows"
        )

    def look(self) -> Seen:
        runs = self.bench.rows("select status from ops.runs order by run_number")
        lines = self.bench.rows("select message from ops.run_logs order by run_id, seq")
        state = ", ".join(run["status"] for run in runs)
        ended = all(run["status"] in ("succeeded", "failed", "canceled") for run in runs)
        return Seen(state, ended, tuple(line["message"] for line in lines))


PEER = Peer(
    "ops-worker",
    (),
    "one worker as a process, defaults but for the URL, the worker's id and the artifact store;"
    " the job is a container of a Debian image",
    OpsWorker,
)
