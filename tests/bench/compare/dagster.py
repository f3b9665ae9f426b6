"""Dagster: a daemon that takes runs from the queue, a code server that starts them, one op."""

from __future__ import annotations

import json
import subprocess

from tests.bench.compare.bench import Bench, Peer, Seen, Site, answers, until
from tests.support.postgres import free_port

JOB = """
import json, os, subprocess
from dagster import Definitions, job, op

@op
def run(context):
    command = json.loads(os.environ["JOB"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            context.log.info(line.rstrip())
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}")

@job
def count():
    run()

defs = Definitions(jobs=[count])
"""
INSTANCE = """
storage:
  postgres:
    postgres_url: {url}
telemetry:
  enabled: false
"""
FINAL = ("SUCCESS", "FAILURE", "CANCELED")
LOG = "select event::jsonb ->> 'user_message' as said from event_logs where dagster_event_type is null order by id"


class Dagster(Site):
    """The code server is the worker: DefaultRunLauncher has it start each run as its process."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.port = free_port()
        self.home = bench.folder / "home"
        self.environ = {"DAGSTER_HOME": str(self.home), "JOB": json.dumps(bench.command)}

    def prepare(self) -> None:
        bench = self.bench
        self.home.mkdir()
        (bench.folder / "count.py").write_text(JOB)
        (self.home / "dagster.yaml").write_text(INSTANCE.format(url=bench.url("postgresql+psycopg2")))
        server = {"host": "127.0.0.1", "port": self.port, "location_name": "count"}
        (bench.folder / "workspace.yaml").write_text(json.dumps({"load_from": [{"grpc_server": server}]}))
        bench.run("dagster", "instance", "migrate", **self.environ)

    def start_worker(self) -> subprocess.Popen[bytes]:
        words = ("dagster", "api", "grpc", "--python-file", "count.py", "--host", "127.0.0.1", "--port", str(self.port))
        return self.bench.spawn(*words, COMPARE_WORKER="1", **self.environ)

    def submit(self) -> None:
        bench = self.bench
        until("the code server takes connections", answers(self.port), self.bench.seconds())
        bench.spawn("dagster-daemon", "run", "-w", "workspace.yaml", **self.environ)
        bench.run("dagster", "job", "launch", "-w", "workspace.yaml", "-j", "count", **self.environ)

    def look(self) -> Seen:
        runs = self.bench.rows("select status from runs order by id")
        state = ", ".join(run["status"] for run in runs)
        lines = tuple(row["said"] for row in self.bench.rows(LOG))
        return Seen(state, bool(runs) and all(run["status"] in FINAL for run in runs), lines)


PEER = Peer(
    "Dagster",
    ("dagster==1.13.27", "dagster-postgres==0.29.27"),
    "a code server, the daemon, storage in PostgreSQL, the default run launcher and coordinator; the job is a process"
    " of a run, which is a process of the code server, which is the worker here; no retries and no run monitoring"
    " (defaults)",
    Dagster,
)
