"""What a hostile program finds in its container: it tries, and each attempt of it fails.

One run makes all attempts and prints what came of each; another, of another project's kind, runs beside it with a
secret and an artifact of its own to be stolen.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.docker.test_services import SERVER, server
from tests.support.docker import FINAL, WAITS, Plane, base_image, docker, new_plane, printed
from tests.support.postgres import Cluster, run_sync
from worker.run.services import service_container

pytestmark = pytest.mark.xdist_group("hostile")

CANARIES = {"host": "canary-of-the-host", "worker": "canary-of-the-worker", "victim": "canary-of-the-victim"}

# Each attempt prints the name and what it got; "" is nothing, an OSError its name.
ATTEMPTS = r"""
import ctypes, errno, json, os, pathlib, socket, stat, subprocess, sys, time

libc = ctypes.CDLL(None, use_errno=True)
CANARIES = [word[::-1] for word in json.loads(sys.argv[1])]
HOST, PORT = sys.argv[2], int(sys.argv[3])

def system(name, *args):
    if getattr(libc, name)(*args) != -1:
        return "succeeded"
    return errno.errorcode[ctypes.get_errno()]

def attempt(name, function):
    try:
        got = function()
    except OSError as error:
        got = errno.errorcode.get(error.errno, type(error).__name__)
    print(json.dumps([name, got]), flush=True)

def sockets():
    found = []
    for folder, _, names in os.walk("/", followlinks=False):
        if folder.startswith(("/proc", "/sys")):
            continue
        for name in names:
            path = os.path.join(folder, name)
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    found.append(path)
            except OSError:
                pass
    return found

def files_with_canaries():
    found = []
    for folder, _, names in os.walk("/"):
        if folder.startswith(("/proc", "/sys")):
            continue
        for name in names:
            path = os.path.join(folder, name)
            try:
                if stat.S_ISREG(os.lstat(path).st_mode) and os.path.getsize(path) < 1 << 20:
                    content = open(path, "rb").read()
                    found += [path for canary in CANARIES if canary.encode() in content]
            except OSError:
                pass
    return found

def environments():
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        found += [str(path) for word in (b"OPS_WORKER_", b"canary", b"AWS_") if word in content]
    return found

def fork_bomb():
    children = []
    try:
        while len(children) < 4000:
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            children.append(child)
        return f"{len(children)} children"
    except OSError as error:
        return f"{errno.errorcode[error.errno]} below 64" if len(children) < 64 else f"{len(children)} children"
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)

def fill_memory():
    child = subprocess.run([sys.executable, "-c", "x = bytearray(512 << 20); print(len(x))"], capture_output=True)
    return child.returncode

def connects(host, port):
    with socket.create_connection((host, port), 2):
        return "connected"

attempt("docker socket", sockets)
def connects_unix(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
    return "connected"
attempt("docker socket by name", lambda: connects_unix("/var/run/docker.sock"))
attempt("worker's environment", environments)
attempt("files of host and victim", files_with_canaries)
attempt("processes outside", lambda: [p for p in os.listdir("/proc") if p.isdigit() and int(p) > 50])
attempt("block devices", lambda: [n for n in os.listdir("/dev") if stat.S_ISBLK(os.lstat(f"/dev/{n}").st_mode)])
attempt("make a device", lambda: os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0)) or "succeeded")
attempt("raw IP socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) and "succeeded")
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3) and "succeeded")
attempt("become another user", lambda: os.setuid(1234) or "succeeded")
attempt("become another group", lambda: os.setgroups([0, 6]) or "succeeded")
attempt("mount", lambda: system("mount", b"none", b"/mnt", b"tmpfs", 0, None))
attempt("unmount", lambda: system("umount2", b"/proc/kcore", 2))
attempt("new user namespace", lambda: system("unshare", 0x10000000))
attempt("chroot", lambda: os.chroot("/tmp") or "succeeded")
attempt("set the clock", lambda: time.clock_settime(time.CLOCK_REALTIME, 0) or "succeeded")
attempt("host name", lambda: socket.sethostname("evil") or "succeeded")
attempt("kernel module", lambda: system("syscall", 175 if os.uname().machine == "x86_64" else 105, None, 0, b""))
attempt("core pattern", lambda: pathlib.Path("/proc/sys/kernel/core_pattern").write_text("|/bin/evil") or "succeeded")
attempt("sysrq", lambda: pathlib.Path("/proc/sysrq-trigger").write_text("h") or "succeeded")
attempt("uevent helper", lambda: pathlib.Path("/sys/kernel/uevent_helper").write_text("/evil") or "succeeded")
attempt("cgroup", lambda: [str(p) for p in pathlib.Path("/sys/fs/cgroup").rglob("*.max*") if os.access(p, os.W_OK)][:1])
attempt("write to the root", lambda: pathlib.Path("/usr/bin/evil").write_text("x") or "succeeded")
attempt("write to etc", lambda: pathlib.Path("/etc/passwd").write_text("x") or "succeeded")
def fill_memory_file_system():
    child = subprocess.run([sys.executable, "-c",
        "f = open('/tmp/full', 'wb', 0)\nfor _ in range(256): f.write(bytes(1 << 20))"], capture_output=True)
    size = os.path.getsize("/tmp/full") >> 20
    pathlib.Path("/tmp/full").unlink()
    return f"{size} MiB, {b'No space left' in child.stderr}"
attempt("fill the memory file system", fill_memory_file_system)
attempt("fill memory", fill_memory)
attempt("fork bomb", fork_bomb)
attempt("network interfaces", lambda: [n for n in os.listdir("/sys/class/net") if n != "lo"])
attempt("database by loopback", lambda: connects("127.0.0.1", PORT))
attempt("a server on the host", lambda: connects(HOST, PORT))
attempt("the internet", lambda: connects("192.0.2.1", 80))
attempt("cloud metadata", lambda: connects("169.254.169.254", 80))
"""

ALLOWED: dict[str, Any] = {
    # An empty list: nothing was found. A word: the error that the attempt ended with.
    "docker socket": [[]],
    "docker socket by name": ["ENOENT"],
    "worker's environment": [[]],
    "files of host and victim": [[]],
    "processes outside": [[]],
    "block devices": [[]],
    "make a device": ["EPERM"],
    "raw IP socket": ["EPERM"],
    "packet socket": ["EPERM"],
    "become another user": ["EPERM"],
    "become another group": ["EPERM"],
    "mount": ["EPERM"],
    "unmount": ["EPERM"],
    "new user namespace": ["EPERM"],
    "chroot": ["EPERM"],
    "set the clock": ["EPERM"],
    "host name": ["EPERM"],
    "kernel module": ["EPERM"],
    "core pattern": ["EROFS"],
    "sysrq": ["EROFS", "ENOENT"],
    "uevent helper": ["EROFS", "ENOENT"],
    "cgroup": [[]],
    "write to the root": ["EROFS"],
    "write to etc": ["EROFS"],
    "fill the memory file system": ["64 MiB, True"],
    "fill memory": [-9],
    "fork bomb": ["EAGAIN below 64"],
    "network interfaces": [[]],
    "database by loopback": ["ECONNREFUSED"],
    "a server on the host": ["ENETUNREACH"],
    "the internet": ["ENETUNREACH"],
    "cloud metadata": ["ENETUNREACH"],
}


@pytest.fixture(scope="module")
def got(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What came of each attempt."""
    folder = tmp_path_factory.mktemp("hostile")
    with cluster.database(cluster.template()) as name:
        yield run_sync(attempts, cluster.url(name), folder)


@asynccontextmanager
async def host_server() -> AsyncIterator[tuple[str, int]]:
    """A server of this process, on the host's loopback and on the bridge's own address, with one port."""
    host = docker("network", "inspect", "bridge", "--format", "{{range .IPAM.Config}}{{.Subnet}}{{end}}")
    address = str(next(ipaddress.ip_network(host.strip()).hosts()))

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(greet, address, 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with await asyncio.start_server(greet, "127.0.0.1", port):
            yield address, port


async def reached(plane: Plane, address: str, network: str, port: int) -> None:
    """The control: where a run is on that network, the server that must not be reached is there."""
    connects = f"import socket; socket.create_connection(({address!r}, {port}), 30); print('connected')"
    run = await plane.python(connects, network=network)
    await plane.until(run, "succeeded", "failed")
    assert await plane.messages(run) == ["connected"], network


async def attempts(url: str, folder: Path) -> dict[str, Any]:
    (folder / "host.txt").write_text(CANARIES["host"])
    (folder / "secrets").mkdir()
    (folder / "secrets" / "theirs").write_text(CANARIES["victim"])
    db = await asyncpg.connect(url)
    plane = await new_plane(db, url, base_image("python3", "python3-venv"), folder)
    waits = f"cp /run/secrets/theirs /artifacts/theirs; cp /run/secrets/theirs /kept/theirs; {WAITS}"
    victim = await plane.shell(waits, secrets=["theirs"], volumes=[{"name": "theirs", "path": "/kept"}])
    flags = (
        "--until-idle", "--concurrency", "3", "--secrets-dir", str(folder / "secrets"),
        "--allowed-networks", "none,bridge,host", "--allowed-volumes", "*",
    )  # fmt: skip
    try:
        async with plane.worker(*flags, AWS_SECRET_ACCESS_KEY=CANARIES["worker"]) as worker:
            await plane.until_logged(victim, "up")
            # Reversed, or the program itself would hold what it looks for.
            words = json.dumps([canary[::-1] for canary in CANARIES.values()])
            async with host_server() as (host, port):
                hostile = await plane.queue(await plane.workflow({
                    "command": ["python3", "-c", ATTEMPTS, words, host, str(port)], "network": "none",
                    "read_only": True, "resources": {"memory": "128m", "pids": 64},
                }))  # fmt: skip
                for control in ((host, "bridge"), ("127.0.0.1", "host")):
                    await reached(plane, *control, port)
                await plane.until(hostile, "succeeded", "failed")
            await plane.release(victim)
            assert await worker.wait() == 0
        assert (await plane.run(victim))["status"] == "succeeded", "the neighbour suffered"
        return dict(json.loads(line) for line in await plane.messages(hostile) if line.startswith("["))
    finally:
        if left := await plane.containers():
            docker("rm", "-fv", *left)
        plane.remove_volumes()
        await db.close()


def test_each_attempt_of_a_hostile_program_fails(got: dict[str, Any]) -> None:
    assert got.keys() == ALLOWED.keys()
    assert [name for name, came_of_it in got.items() if came_of_it not in ALLOWED[name]] == []


_SETUID = """\
ARG BASE
FROM ${BASE}
RUN cp /usr/bin/id /usr/local/bin/id-of-root && chmod 4755 /usr/local/bin/id-of-root
USER 1234
"""


@pytest.fixture(scope="module")
def setuid_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image whose user is 1234, with a setuid program of root's."""
    folder, tag = tmp_path_factory.mktemp("setuid"), f"ops-worker-tests/setuid:{uuid.uuid4().hex[:12]}"
    (folder / "Dockerfile").write_text(_SETUID)
    base = base_image("python3", "python3-venv")
    docker("build", "--network", "none", "--build-arg", f"BASE={base}", "--tag", tag, str(folder))
    yield tag
    docker("rmi", "--force", tag)


REACHES = """\
import socket, sys
def connects(host, port):
    try:
        with socket.create_connection((host, port), 3) as server:
            server.recv(9)  # a network may accept connections to every address, and never say anything
            return "connected"
    except OSError:
        return "failed"
for place in sys.argv[1:]:
    host, _, port = place.rpartition(":")
    print(place, connects(host, int(port)), flush=True)
"""


async def test_no_other_run_reaches_the_services_of_a_run(served: Plane, image: str) -> None:
    """Whatever network the other run is on, and whatever services it has itself, also of the same names."""
    victims, places = [], []
    for network in ("bridge", "none"):
        database = server(image, "db", command=["python3", "-c", SERVER.replace("hello", "secret")])
        run_id = await served.shell(WAITS, network=network, services=[database])
        victims.append(run_id)
        await served.until_logged(run_id, "up")
        facts = json.loads(docker("inspect", service_container(served.container(run_id), "db")))[0]
        [its] = facts["NetworkSettings"]["Networks"].values()
        places.append(f"{its['IPAddress']}:5432")
    async with host_server() as (host, port):
        for network in ("bridge", "none"):
            for services in ([], [server(image, "own")]):
                own = ["own:5432"] if services else []
                hosts = [f"{host}:{port}", f"127.0.0.1:{port}"] if network == "none" else [f"127.0.0.1:{port}"]
                words = [*places, "db:5432", *hosts, *own]
                command = ["python3", "-c", REACHES, *words]
                run_id = await served.queue(
                    await served.workflow({"command": command, "network": network, "services": services})
                )
                assert (await served.until(run_id, *FINAL))["status"] == "succeeded"
                came = dict(line.split() for line in await served.messages(run_id))
                assert came == {word: "connected" if word in own else "failed" for word in words}, (network, services)
    for run_id in victims:
        await served.release(run_id)
        assert (await served.until(run_id, *FINAL))["status"] == "succeeded", "the neighbour suffered"


async def test_a_setuid_program_does_not_become_root(served: Plane, setuid_image: str) -> None:
    assert printed(setuid_image, "id-of-root", "-u") == "0\n", "the control: it would, elsewhere"
    version = await served.tool(setuid_image)
    run_id = await served.queue(await served.workflow({"command": ["id-of-root", "-u"], "version": version}))
    await served.until(run_id, *FINAL)
    assert await served.messages(run_id) == ["1234"]
