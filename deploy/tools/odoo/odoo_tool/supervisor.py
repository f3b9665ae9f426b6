"""The command ``runtime``: it serves the current release of the volume, and is process 1 of its container.

It looks at the files of the volume (``volume.py``), so a deploy needs neither the engine nor its socket:

    a deploy was killed        stop Odoo, end the deploy (``switching.py``)
    maintenance, or no release stop Odoo, answer 503
    another release, restart   stop Odoo, start it
    Odoo ended                 answer 503, start it again after a pause that doubles each time

A SIGTERM stops Odoo, which ends its requests first.
"""

from __future__ import annotations

import configparser
import contextlib
import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import switching
from .page import Page
from .steps import Failure, environment, explain, say, step
from .versions import series
from .volume import LOCK_SECONDS, Volume

TICK_SECONDS = 0.2
STOP_SECONDS = 60
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
STABLE_SECONDS = 60
FAILING = 2  # starts without success, after which the state in the status is `failing`


@dataclass(frozen=True)
class Seen:
    """What the volume says."""

    release: str
    maintenance: bool = False
    interrupted: bool = False
    """there is a journal, and no deploy holds the lock"""
    restart: int = 0
    """when a restart was last asked for"""


@dataclass(frozen=True)
class Served:
    """What Odoo was started for; nothing if it does not run."""

    release: str = ""
    restart: int = 0


def decide(seen: Seen, served: Served, *, may_start: bool) -> str:
    """What is to be done: ``recover``, ``close`` (the page), ``stop``, ``start``, or ``wait``."""
    if seen.interrupted:
        return "stop" if served.release else "recover"
    if seen.maintenance or not seen.release:
        return "stop" if served.release else "close"
    if served.release and (served.release, served.restart) != (seen.release, seen.restart):
        return "stop"
    if not served.release and may_start:
        return "start"
    return "wait"


def pause(failures: int) -> float:
    """Seconds before the next start."""
    return min(FIRST_PAUSE * 2.0 ** max(failures - 1, 0), LONGEST_PAUSE) if failures else 0.0


class Runtime:
    """Odoo or the page on one port."""

    def __init__(self, volume: Volume, port: int, options: Sequence[str], work: Path) -> None:
        self.volume, self.port, self.options, self.work = volume, port, options, work
        self.served = Served()
        self.child: subprocess.Popen[bytes] | None = None
        self.ready = threading.Event()
        self.page: Page | None = None
        self.state = ""
        self.started = 0.0
        self.failures = 0
        self.next_start = 0.0
        self.next_recovery = 0.0
        self.background: threading.Thread | None = None

    def tick(self) -> float:
        """Looks once; returns after how many seconds to look again. A full volume, for example, does not stop Odoo."""
        try:
            self.once()
        except OSError as error:
            say(f"WARNING: runtime: {error}")
            return 10 * TICK_SECONDS
        return TICK_SECONDS

    def once(self) -> None:
        """Looks once, and does one thing."""
        self.reap()
        if self.child is not None and self.ready.is_set() and self.state != "serving":
            self.state = "serving"
            step(f"runtime: Odoo serves release {self.served.release}")
        seen = look(self.volume, working=self.is_finishing)
        now = time.monotonic()
        what = decide(seen, self.served, may_start=now >= self.next_start)
        if what == "stop":
            self.stop()
        elif what == "close":
            self.failures, self.next_start = 0, 0.0
            self.answer_503("maintenance" if seen.maintenance else "empty")
        elif what == "recover":
            self.answer_503("recovering")
            if now >= self.next_recovery:
                self.recover()
        elif what == "start":
            self.start(seen)
        self.report(seen)

    def report(self, seen: Seen) -> None:
        """Writes the status, if it is another one."""
        maintained = self.volume.maintenance if self.state == "maintenance" else None
        status = {"state": self.state, "release": self.served.release or seen.release, "maintenance": maintained}
        if status != self.volume.read("status"):
            self.volume.write("status", status)

    # --- Odoo -------------------------------------------------------------------------------------------------------

    def start(self, seen: Seen) -> None:
        step(f"runtime: starting Odoo with release {seen.release}")
        try:
            command, env = odoo_command(self.volume, seen.release, self.port, self.options, self.work)
        except (Failure, OSError, ValueError) as error:
            say(explain(error) if isinstance(error, Failure) else f"ERROR: release {seen.release}: {error}")
            self.failed()
            return
        self.close_page()
        sys.stdout.flush()
        self.served = Served(seen.release, seen.restart)
        self.child = subprocess.Popen(command, env=environment(env), stdin=subprocess.DEVNULL, start_new_session=True)
        self.started = time.monotonic()
        if self.state != "failing":
            self.state = "starting"
        self.ready = threading.Event()
        threading.Thread(target=self.probe, args=(self.child, self.ready), daemon=True).start()

    def probe(self, child: subprocess.Popen[bytes], ready: threading.Event) -> None:
        """Waits until Odoo shows its login page."""
        while self.child is child and not ready.is_set():
            if status_of(self.port, "/web/login", seconds=60) == 200:  # noqa: PLR2004
                ready.set()
            time.sleep(0.3)

    @property
    def is_finishing(self) -> bool:
        """Whether a recovery still works in the background; it waits for processes of its own."""
        return self.background is not None and self.background.is_alive()

    def reap(self) -> None:
        """Collects the exits of Odoo and, since this is process 1, of every orphan."""
        with contextlib.suppress(ChildProcessError):
            while True:
                child = self.child.pid if self.child is not None else 0
                which = child if self.is_finishing else -1
                pid, status = os.waitpid(which, os.WNOHANG) if which else (0, 0)
                if not pid:
                    return
                if self.child is not None and pid == child:
                    self.child.returncode = code = exit_code(status)
                    say(f"WARNING: Odoo ended with exit code {code}")
                    self.ended()
                    self.failed()

    def ended(self) -> None:
        """Odoo does not run any more; what it may have left running ends, too."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
        self.child = None
        self.served = Served()

    def failed(self) -> None:
        if time.monotonic() - self.started > STABLE_SECONDS:
            self.failures = 0
        self.failures += 1
        self.next_start = time.monotonic() + pause(self.failures)
        self.answer_503("failing" if self.failures >= FAILING else "starting")
        step(f"runtime: starting Odoo again in {pause(self.failures):.0f} s")

    def stop(self) -> None:
        """Ends Odoo; it may end its requests first."""
        if self.child is None:
            return
        step("runtime: stopping Odoo")
        self.child.terminate()
        try:
            self.child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            say(f"WARNING: Odoo did not stop for {STOP_SECONDS} s: it is killed")
            self.child.kill()
            self.child.wait()
        self.ended()
        self.failures, self.next_start = 0, 0.0
        self.state = "stopped"

    # --- the page and the recovery ----------------------------------------------------------------------------------

    def answer_503(self, state: str) -> None:
        if self.state == state and self.page is not None:
            return
        self.close_page()
        self.state = state
        with contextlib.suppress(OSError):  # the port may be free a moment later
            self.page = Page(self.port, state, self.volume.state / "maintenance.html")
            step(f"runtime: answering 503 ({state})")

    def close_page(self) -> None:
        if self.page is not None:
            self.page.close()
            self.page = None

    def recover(self) -> None:
        """Ends the deploy that was killed. What is left of it is deleted while production runs again."""
        lock = contextlib.ExitStack()
        try:
            journal = self.volume.journal() if lock.enter_context(self.volume.held("lock")) else None
            if journal is None:
                lock.close()
                return
            delete_the_rest = switching.settle(self.volume, journal)
        except (Failure, OSError) as error:
            lock.close()
            say(explain(error) if isinstance(error, Failure) else f"ERROR: recovery: {error}")
            self.next_recovery = time.monotonic() + FIRST_PAUSE * 5
            return
        finally:
            switching.end_application()  # Odoo would pass for a part of the deploy

        def finish() -> None:
            with lock:
                try:
                    step(f"recovery: {delete_the_rest()}")
                except (Failure, OSError) as error:
                    say(f"WARNING: recovery: the next deploy deletes what is left: {error}")

        self.background = threading.Thread(target=finish, daemon=True)
        self.background.start()


def exit_code(status: int) -> int:
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)


def look(volume: Volume, *, working: bool) -> Seen:
    """What the volume says; ``working``: this program itself holds the lock."""
    interrupted = not working and (volume.state / "journal.json").is_file() and not volume.is_held("lock")
    restart = volume.state / "restart"
    return Seen(
        volume.current,
        maintenance=volume.maintenance is not None,
        interrupted=interrupted and (volume.state / "journal.json").is_file(),  # a deploy may just have ended
        restart=restart.stat().st_mtime_ns if restart.is_file() else 0,
    )


@functools.cache
def version() -> str:
    """Of the image's Odoo, which does not change."""
    from .project import odoo  # noqa: PLC0415

    return odoo().version


def odoo_command(
    volume: Volume, name: str, port: int, options: Sequence[str], work: Path
) -> tuple[list[str], dict[str, str]]:
    """How Odoo is started for a release, and its environment."""
    from . import addons, releases  # noqa: PLC0415 - the image has what they import
    from .project import odoo_program  # noqa: PLC0415

    facts = releases.facts(volume.releases / name)
    folders, python_path = releases.places(volume.releases / name)
    if series(facts["odoo"]) != series(version()):
        raise Failure(
            f"release {name}: it is for Odoo {facts['odoo']}, and this image has Odoo {version()}",
            "run the runtime of the same Odoo, or deploy with the image of this one",
        )
    config = configparser.RawConfigParser()
    config["options"] = {
        "addons_path": ",".join(map(str, folders)),
        "data_dir": str(volume.folder),
        "list_db": "False",
        "http_interface": "0.0.0.0",  # noqa: S104 - of the container
        "admin_passwd": secrets.token_hex(32),
    }
    path = work / "odoo.conf"
    with path.open("w") as file:
        config.write(file)
    path.chmod(0o600)
    command = [*odoo_program(), "-c", str(path), "-d", facts["database"], "--http-port", str(port)]
    return [*command, *options], addons.path_variable(python_path)


def status_of(port: int, path: str, seconds: float) -> int:
    """The status of an answer; 0 if there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=seconds) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (OSError, ValueError):
        return 0


def check(volume: Volume, port: int) -> bool:
    """Whether the runtime does what its status file says: it serves, or shows the page of a deploy."""
    status: dict[str, Any] = volume.read("status")
    state = str(status.get("state"))
    code = status_of(port, "/web/health", seconds=10)
    say(json.dumps({**status, "http": code}))
    if state == "serving":
        return 0 < code < 500  # noqa: PLR2004
    return state in {"maintenance", "recovering", "empty"} and code == 503  # noqa: PLR2004


def serve(volume: Volume, port: int, options: Sequence[str]) -> None:
    """Serves until a SIGTERM.

    Raises:
        Failure: another runtime serves the volume
    """
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with volume.held("runtime.lock", LOCK_SECONDS) as mine, tempfile.TemporaryDirectory(prefix="odoo-runtime-") as work:
        if not mine:
            raise Failure(f"volume {volume.folder}: another runtime serves it", "stop that one first")
        runtime = Runtime(volume, port, options, Path(work))
        while not ending.is_set():
            ending.wait(runtime.tick())
        runtime.stop()
        runtime.close_page()
        step("runtime: ended")
