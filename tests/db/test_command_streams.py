"""What the commands print to a terminal, a pipe that closes, and a narrow locale."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from tests.support.command import ops_worker
from tests.support.docker import PATIENCE, ROOT
from tests.support.postgres import Cluster
from tests.support.scripts import environ_of


def test_on_a_terminal_a_table_has_colours_and_ages(db_url: str, cluster: Cluster) -> None:
    name = re.search(r"@/(\w+)", db_url)
    assert name is not None
    cluster.execute(
        """with p as (insert into ops.projects (workspace_key, slug, name, odoo_version)
                      values ('acme', 'acme', 'Acme', '19.0') returning id),
            w as (insert into ops.workflows (project_id, workflow_type, name)
                  select id, 'build', 'build' from p returning id, project_id)
           insert into ops.runs (project_id, workflow_id) select project_id, id from w""",
        database=name[1],
    )
    for no_color, queued in (("", "\x1b[34mqueued\x1b[0m"), ("1", "  queued  ")):
        ours, its = pty.openpty()
        environ = environ_of(OPS_WORKER_DATABASE_URL=db_url, NO_COLOR=no_color, TERM="xterm", COLUMNS="80")
        command = [sys.executable, "-m", "worker", "runs", "list"]
        with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=its, stderr=its) as process:
            os.close(its)
            shown = b""
            try:
                while part := os.read(ours, 4096):
                    shown += part
            except OSError:  # Linux's way to say that the terminal was closed
                pass
            assert process.wait(PATIENCE) == 0
        os.close(ours)
        text = shown.decode()
        assert queued in text
        assert re.search(r"\d+s ago", text)
        assert ("\x1b" in text) == (not no_color)


def test_a_locale_without_the_characters_is_no_error(db_url: str, cluster: Cluster) -> None:
    [database] = re.findall(r"@/(\w+)", db_url)
    cluster.execute(
        "insert into ops.projects (workspace_key, slug, name, odoo_version) values ('a', 'a', 'Ü 漢', '19.0')",
        database=database,
    )
    done = ops_worker("projects", OPS_WORKER_DATABASE_URL=db_url, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr, r"\xdc \u6f22" in done.stdout) == (0, "", True)


def test_a_reader_that_leaves_is_no_error(db_url: str, cluster: Cluster) -> None:
    command = f"{sys.executable} -m worker runs list | :; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environ_of(OPS_WORKER_DATABASE_URL=db_url), capture_output=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, b"")
