"""A Docker engine of the tests' own, to be filled up, stopped and killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.docker import docker

IMAGE = "tiny:1"
START_SECONDS = 60
_PROGRAMS = "sh seq sleep touch cat head yes mkdir rm ls dd"

_UP = "import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh', b'lo', 1))"
"""Sets the flags of ``lo`` (SIOCSIFFLAGS) to IFF_UP."""


@contextmanager
def small_disk(size: str) -> Iterator[Path]:
    """A file system of that size."""
    if os.geteuid() != 0:
        pytest.skip("mounting, and starting an engine, needs root")
    with tempfile.TemporaryDirectory(prefix="ops-d-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


class OwnEngine:
    """A second dockerd with everything of its own. Needs root.

    It lives in a network namespace of its own: with ``--bridge=none`` dockerd deletes the ``docker0`` that it
    finds, and in the host's namespace that is another engine's. So its containers have no network.
    """

    def __init__(self, data: Path | None = None, *, live_restore: bool = False) -> None:
        self._live_restore = live_restore
        self._folder = Path(tempfile.mkdtemp(prefix="ops-e-", dir="/tmp"))
        self._data = data or self._folder / "data"
        self.socket = str(self._folder / "docker.sock")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None or self._process.poll() is not None:
            self.start()
        if left := self.docker("ps", "-aq").split():
            self.docker("rm", "-fv", *left)
        self.stop()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(f"{self._folder}/")), reverse=True):
            subprocess.run(["umount", mount], check=False, capture_output=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Of the engine's process."""
        assert self._process is not None
        return self._process.pid

    def docker(self, *words: str) -> str:
        return docker("--host", f"unix://{self.socket}", *words)

    def start(self) -> None:
        """Starts it and waits until it answers."""
        (self._folder / "pid").unlink(missing_ok=True)
        words = [
            "unshare", "--net", "dockerd", f"--host=unix://{self.socket}", f"--data-root={self._data}",
            f"--exec-root={self._folder / 'exec'}", f"--pidfile={self._folder / 'pid'}", "--bridge=none",
            "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--log-level=error",
            f"--live-restore={str(self._live_restore).lower()}",
        ]  # fmt: skip
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(subprocess.CalledProcessError):
                self.docker("version")
                return
            time.sleep(0.05)
        raise RuntimeError(f"the second engine did not start:\n{(self._folder / 'log').read_text()[-4000:]}")

    def stop(self) -> None:
        """Stops it as a service manager does, which ends its containers unless it has ``live_restore``."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def kill(self) -> None:
        """Kills it. Its containers run on until the next start, which ends them unless it has ``live_restore``."""
        process, self._process = self._process, None
        assert process is not None
        containerd = self._folder / "exec" / "containerd" / "containerd.pid"
        pid = int(containerd.read_text())
        process.kill()
        process.wait()
        while _lives(pid):  # it dies with its parent
            time.sleep(0.01)
        containerd.unlink()  # where no init collects dead processes, the next engine would wait for this one

    def bring_up_loopback(self) -> None:
        """Gives its network namespace the loopback interface. A bare machine has no ``ip``."""
        words = ["nsenter", "--target", str(self.pid), "--net", sys.executable, "-c", _UP]
        subprocess.run(words, check=True)

    @contextmanager
    def away(self, way: Callable[[OwnEngine], None]) -> Iterator[None]:
        """Stops or kills it, for as long as the block lasts."""
        way(self)
        try:
            yield
        finally:
            self.start()

    def load_image(self, base: str) -> str:
        """An image of a few megabytes with a shell, out of a larger one on the shared engine; returns its name."""
        script = (
            f'p="$(for c in {_PROGRAMS}; do command -v $c; done)"; '
            'tar -ch $p $(ldd $p | grep -o "/lib[^ ]*" | grep -v : | sort -u)'
        )
        made = subprocess.run(
            ["docker", "run", "--rm", "--network=none", base, "sh", "-c", script], check=True, capture_output=True
        )
        words = ["docker", "--host", f"unix://{self.socket}", "import", "-", IMAGE]
        subprocess.run(words, input=made.stdout, check=True, capture_output=True)
        return IMAGE


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
