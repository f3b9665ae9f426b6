"""Celery: a task that starts the container by the Docker SDK, and writes the container's log to a file."""

from __future__ import annotations

import json
import subprocess

from tests.bench.compare.bench import Bench, Peer, Seen, Site

TASKS = """
import json, os
import docker
from celery import Celery

app = Celery("tasks", broker=os.environ["BROKER"], backend=os.environ["BACKEND"])
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, task_track_started=True)

@app.task
def count(image, command, log):
    client = docker.from_env()
    container = client.containers.run(image, command, detach=True)
    with open(log, "ab", buffering=0) as kept:
        for chunk in container.logs(stream=True, follow=True):
            kept.write(chunk)
    code = container.wait()["StatusCode"]
    container.remove()
    if code:
        raise RuntimeError(f"exit code {code}")
"""
SUBMIT = "import json, sys, tasks; print(tasks.count.delay(*json.loads(sys.argv[1])).id)"


class Celery(Site):
    """One worker with one prefork child; broker and results are in PostgreSQL."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.environ = {"BROKER": bench.url("sqla+postgresql+psycopg2"), "BACKEND": bench.url("db+postgresql+psycopg2")}
        self.log = bench.folder / "job.log"

    def prepare(self) -> None:
        (self.bench.folder / "tasks.py").write_text(TASKS)

    def start_worker(self) -> subprocess.Popen[bytes]:
        words = ("celery", "-A", "tasks", "worker", "--concurrency", "1", "--loglevel", "INFO")
        return self.bench.spawn(*words, COMPARE_WORKER="1", **self.environ)

    def submit(self) -> None:
        args = (self.bench.image, self.bench.command, str(self.log))
        self.bench.run("python", "-c", SUBMIT, json.dumps(args), **self.environ)

    def look(self) -> Seen:
        exists = self.bench.rows("select to_regclass('celery_taskmeta') is not null as there")[0]["there"]
        rows = self.bench.rows("select status from celery_taskmeta") if exists else []
        state = ", ".join(row["status"] for row in rows) or "PENDING"
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return Seen(state, state in ("SUCCESS", "FAILURE", "REVOKED"), tuple(lines))


PEER = Peer(
    "Celery",
    ("celery==5.7.0", "sqlalchemy==2.1.9", "psycopg2-binary==2.9.13", "docker==7.2.0"),
    "one prefork worker with `--concurrency 1`, SQLAlchemy broker and result backend in PostgreSQL (not the usual Redis"
    " or RabbitMQ), `task_acks_late`, `task_reject_on_worker_lost` and `task_track_started` set (no defaults); the task"
    " starts a container by the Docker SDK and writes its log to a file (Celery keeps no log of a task). This broker"
    " does not deliver a lost task again. By its documents RabbitMQ does at once and Redis after an hour; the task then"
    " starts a second container (not tried)",
    Celery,
)
