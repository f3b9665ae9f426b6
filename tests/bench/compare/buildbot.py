"""Buildbot: a master, a worker, a builder with one shell step."""

from __future__ import annotations

import subprocess

from tests.bench.compare.bench import Bench, Peer, Seen, Site, answers, until
from tests.support.postgres import free_port

MASTER = """
import os
from buildbot.plugins import schedulers, steps, util, worker

BuildmasterConfig = c = {{}}
c["workers"] = [worker.Worker("host", "of-this-test")]
c["protocols"] = {{"pb": {{"port": "tcp:{port}:interface=127.0.0.1"}}}}
c["schedulers"] = [schedulers.Periodic("once", builderNames=["count"], periodicBuildTimer=86400)]
c["builders"] = [util.BuilderConfig(name="count", workernames=["host"], factory=util.BuildFactory(
    [steps.ShellCommand(command={command!r}, haltOnFailure=True)]))]
c["db"] = {{"db_url": {url!r}}}
c["logCompressionMethod"] = "raw"
c["buildbotNetUsageData"] = None
"""
RESULTS = ("success", "warnings", "failure", "skipped", "exception", "retry", "canceled")
LOG = "select content from logchunks order by logid, first_line"


class Buildbot(Site):
    """The job is a process of the worker. The build is queued by a scheduler that fires when the master starts."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.port = free_port()

    def prepare(self) -> None:
        bench = self.bench
        bench.run("buildbot", "create-master", "master")
        config = MASTER.format(port=self.port, command=list(bench.command), url=bench.url("postgresql+psycopg2"))
        (bench.folder / "master" / "master.cfg").write_text(config)
        bench.run("buildbot", "upgrade-master", "master")
        bench.run("buildbot-worker", "create-worker", "worker", f"127.0.0.1:{self.port}", "host", "of-this-test")
        bench.spawn("buildbot", "start", "--nodaemon", "master")
        until("the master takes connections", answers(self.port), self.bench.seconds())

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self.bench.spawn("buildbot-worker", "start", "--nodaemon", "worker", COMPARE_WORKER="1")

    def submit(self) -> None:
        """The scheduler did it."""

    def look(self) -> Seen:
        builds = self.bench.rows("select results from builds order by id")
        requests = self.bench.rows("select complete from buildrequests")
        chunks = "\n".join(row["content"].decode() for row in self.bench.rows(LOG))
        # the first letter of a line of a log is its stream
        lines = tuple(line[1:] for line in chunks.splitlines() if line.startswith("o"))
        states = ("running" if build["results"] is None else RESULTS[build["results"]] for build in builds)
        return Seen(", then ".join(states), bool(requests) and all(row["complete"] for row in requests), lines)


PEER = Peer(
    "Buildbot",
    ("buildbot==4.3.0", "buildbot-worker==4.3.0", "psycopg2-binary==2.9.13"),
    "a master with its database in PostgreSQL and one worker, defaults but for an uncompressed log, so that it can be"
    " read; the job is a ShellCommand, a process of the worker",
    Buildbot,
)
