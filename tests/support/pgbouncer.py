"""A real pgbouncer before a test's server, on a Unix socket."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from deploy.demo.cluster import START_SECONDS, server_user
from tests.support.debian import unpacked
from tests.support.postgres import Cluster

_PORT = 6432  # part of a file's name
_SETTINGS = f"""\
[databases]
* = host={{server}} port={{port}} user={{user}}
[pgbouncer]
listen_addr =
listen_port = {_PORT}
unix_socket_dir = {{folder}}
auth_type = any
pool_mode = {{mode}}
client_idle_timeout = {{idle}}
"""


@contextmanager
def pooler(
    cluster: Cluster, mode: Literal["session", "transaction"], *, database: str, user: str, idle_seconds: int = 0
) -> Iterator[str]:
    """The URL of a database behind a pooler that logs in as ``user``; clients idle for so long are sent away."""
    package = unpacked("pgbouncer", libraries=True)
    owner = server_user()
    with tempfile.TemporaryDirectory(prefix="ops-pool-") as name:
        folder = Path(name)
        # where the unprivileged user can reach it; pgbouncer refuses to run as root
        for file in (package / "usr/sbin/pgbouncer", *package.rglob("*.so.*")):
            shutil.copy(file, folder)
        (folder / "settings").write_text(
            _SETTINGS.format(
                server=cluster.directory, port=cluster.port, user=user, folder=folder, mode=mode, idle=idle_seconds
            )
        )
        identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
        if owner:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [folder / "pgbouncer", folder / "settings"],
                cwd=folder, env={"LD_LIBRARY_PATH": name}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                **identity,  # type: ignore[call-overload]
            )  # fmt: skip
        try:
            deadline = time.monotonic() + START_SECONDS
            while not (folder / f".s.PGSQL.{_PORT}").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"pgbouncer did not start:\n{(folder / 'log').read_text()}")
                time.sleep(0.02)
            yield f"postgresql://{user}@/{database}?host={folder}&port={_PORT}"
        finally:
            process.terminate()
            process.wait(30)
