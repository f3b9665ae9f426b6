"""Airflow: scheduler with LocalExecutor, API server, DAG processor, one BashOperator."""

from __future__ import annotations

import json
import shlex
import subprocess

from tests.bench.compare.bench import Bench, Peer, Seen, Site, answers, until
from tests.support.postgres import free_port

DAG = """
from datetime import datetime
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG("count", schedule="@once", start_date=datetime(2026, 1, 1)):
    BashOperator(task_id="count", bash_command={command!r})
"""
FINAL = ("success", "failed", "skipped", "upstream_failed", "removed")


class Airflow(Site):
    """The scheduler is the worker: LocalExecutor runs the job as its process. The DAG is scheduled once."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.port = free_port()
        self.environ = {
            "AIRFLOW_HOME": str(bench.folder / "home"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": bench.url("postgresql+psycopg2"),
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{self.port}/execution/",
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__CORE__PARALLELISM": "2",
            "AIRFLOW__API_AUTH__JWT_SECRET": bench.token * 3,
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        }

    def prepare(self) -> None:
        bench = self.bench
        dags = bench.folder / "home" / "dags"
        dags.mkdir(parents=True)
        # bash does not replace itself by the shell, so the token stays in a command line of its own
        (dags / "count.py").write_text(DAG.format(command=f"{shlex.join(bench.command)}; exit $?"))
        bench.run("airflow", "db", "migrate", **self.environ)
        bench.spawn("airflow", "api-server", "--host", "127.0.0.1", "--port", str(self.port), **self.environ)
        bench.spawn("airflow", "dag-processor", **self.environ)
        until("the API server takes connections", answers(self.port), self.bench.seconds())
        until("the DAG is read", lambda: bool(bench.rows("select from dag")), bench.seconds())

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self.bench.spawn("airflow", "scheduler", COMPARE_WORKER="1", **self.environ)

    def submit(self) -> None:
        """The schedule did it."""

    def look(self) -> Seen:
        tasks = self.bench.rows("select state, try_number from task_instance")
        said = [
            json.loads(line).get("event", "")
            for log in sorted((self.bench.folder / "home" / "logs").glob("dag_id=count/**/attempt=*.log"))
            for line in log.read_text().splitlines()
            if line.startswith("{")
        ]
        state = ", ".join(task["state"] or "none" for task in tasks)
        return Seen(state, bool(tasks) and all(task["state"] in FINAL for task in tasks), tuple(said))


PEER = Peer(
    "Airflow",
    ("apache-airflow==3.3.2", "psycopg2-binary==2.9.13", "asyncpg==0.32.0"),
    "scheduler with LocalExecutor (the default) and `parallelism` 2, API server with one process, DAG processor,"
    " database in PostgreSQL; the job is a BashOperator, a process of the scheduler, which is the worker here; no"
    " retries (the default)",
    Airflow,
)
