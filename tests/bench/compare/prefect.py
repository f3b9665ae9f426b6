"""Prefect: a server, a work pool of type process, a flow that prints what the job prints."""

from __future__ import annotations

import json
import subprocess

from tests.bench.compare.bench import Bench, Peer, Seen, Site, answers, until
from tests.support.postgres import free_port

FLOW = """
import json, os, subprocess
from pathlib import Path
from prefect import flow

@flow(log_prints=True)
def count():
    command = json.loads(os.environ["JOB"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        for line in job.stdout:
            print(line.rstrip())
    if job.returncode:
        raise RuntimeError(f"exit code {job.returncode}")

if __name__ == "__main__":
    source = flow.from_source(source=str(Path(__file__).parent), entrypoint="flow.py:count")
    source.deploy(name="job", work_pool_name="hosts")
"""
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


class Prefect(Site):
    """The job is a process of a flow run, which is a process of the worker."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.port = free_port()
        self.environ = {
            "PREFECT_HOME": str(bench.folder / "home"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": bench.url("postgresql+asyncpg"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "JOB": json.dumps(bench.command),
        }

    def prepare(self) -> None:
        bench = self.bench
        (bench.folder / "flow.py").write_text(FLOW)
        bench.spawn("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port), **self.environ)
        until("the server takes connections", answers(self.port), self.bench.seconds())
        bench.run("prefect", "work-pool", "create", "hosts", "--type", "process", **self.environ)
        bench.run("python", "flow.py", **self.environ)

    def start_worker(self) -> subprocess.Popen[bytes]:
        words = ("prefect", "worker", "start", "--pool", "hosts", "--type", "process")
        return self.bench.spawn(*words, COMPARE_WORKER="1", **self.environ)

    def submit(self) -> None:
        self.bench.run("prefect", "deployment", "run", "count/job", **self.environ)

    def look(self) -> Seen:
        runs = self.bench.rows("select state_type::text as type, state_name from flow_run order by created")
        lines = self.bench.rows("select message from log where message like 'line %' order by timestamp")
        state = ", ".join(run["state_name"] for run in runs)
        return Seen(state, all(run["type"] in FINAL for run in runs), tuple(line["message"] for line in lines))


PEER = Peer(
    "Prefect",
    ("prefect==3.9.1",),
    "a server with its database in PostgreSQL, a work pool of type process with one worker, defaults; the flow has"
    " `log_prints=True` and prints what the job's process prints; no retries (the default)",
    Prefect,
)
