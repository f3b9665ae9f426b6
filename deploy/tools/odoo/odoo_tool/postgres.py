"""A PostgreSQL beside a run, which lives as long as it and writes nothing to the disk for safety; or a durable one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .steps import Failure, read, say

SERVED = {
    "dynamic_shared_memory_type": "mmap",  # /dev/shm of a container has 64 MiB
    "listen_addresses": "*",
    "unix_socket_directories": "/tmp",  # noqa: S108 - the container's own
}
FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "256MB",
}


def serve(user: str, password: str | None, trust: bool, options: Sequence[str], *, durable: bool) -> None:  # noqa: FBT001
    """Creates a cluster in ``PGDATA`` and becomes its server; a durable one may exist already.

    Raises:
        Failure: neither a password is given, nor ``trust``
    """
    if password is None and not trust:
        raise Failure(
            "POSTGRES_PASSWORD: a password is missing",
            "set it, or give the service the secret pgpassword, or --trust if only the run can reach the service",
        )
    programs = programs_folder()
    data = Path(os.environ["PGDATA"])
    if not (durable and data.is_dir()):
        create(programs, data, user, password, durable=durable)
    chosen = SERVED if durable else {**SERVED, **FAST}
    settings = [word for name, value in chosen.items() for word in ("-c", f"{name}={value}")]
    how = "" if durable else ", without fsync"
    say(f"==> serving PostgreSQL {programs.parent.name} for the user {user}, in {data}{how}")
    os.execv(programs / "postgres", [str(programs / "postgres"), "-D", str(data), *settings, *options])  # noqa: S606 - becomes the server


def create(programs: Path, data: Path, user: str, password: str | None, *, durable: bool) -> None:
    """Creates a cluster. It gets its name when it is complete, so that one which was begun is not taken for one."""
    data.parent.mkdir(parents=True, exist_ok=True)
    part = data.with_name(f"{data.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    command: list[str | Path] = [programs / "initdb", "-D", part, "-U", user, "-E", "UTF8", "--locale=C.UTF-8"]
    command += [] if durable else ["--no-sync"]
    with tempfile.NamedTemporaryFile("w") as file:
        if password is not None:
            file.write(password)
            file.flush()
            command += ["--pwfile", file.name, "--auth=scram-sha-256"]
        else:
            command += ["--auth=trust"]
        read(command, thing=f"cluster {data}", advice="give the service a tmpfs at the parent folder of PGDATA")
    with (part / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all all {'trust' if password is None else 'scram-sha-256'}\n")
    part.rename(data)


def programs_folder() -> Path:
    """The programs of the newest PostgreSQL server of the image."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not found:
        raise Failure("PostgreSQL: the image has no server", "build the target postgres of the Dockerfile")
    return found[-1].parent
