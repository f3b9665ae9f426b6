"""A visitor of a site.

visitor.py URL         asks for its login page five times a second until SIGTERM, then prints what the answers were
visitor.py --wait URL  asks until the login page is there; exits with 1 after two minutes without it
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from itertools import pairwise

LOGIN, MAINTENANCE, DAMAGED, NOTHING = "the login page", "503 with the maintenance page", "another answer", "no answer"
TITLE = "This site is being updated."
PATIENCE = 120.0
"""Seconds."""


def answer(url: str) -> str:
    """What the site answers."""
    try:
        with urllib.request.urlopen(f"{url}/web/login", timeout=30) as got:
            return LOGIN if b'name="login"' in got.read() else DAMAGED
    except urllib.error.HTTPError as error:
        with error:
            return MAINTENANCE if error.code == 503 and TITLE in error.read().decode() else f"status {error.code}"  # noqa: PLR2004
    except OSError:
        return NOTHING


def waits(url: str) -> bool:
    """Whether the login page is there in time."""
    deadline = time.monotonic() + PATIENCE
    while answer(url) != LOGIN:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def watch(url: str) -> None:
    """Asks until SIGTERM, and prints for how long it got each answer."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    seen: list[tuple[float, str]] = []
    while not ending.wait(0.2):
        began = time.monotonic()
        seen.append((began, answer(url)))
    seen.append((time.monotonic(), ""))
    seconds: dict[str, float] = {}
    for (began, what), (ended, _) in pairwise(seen):
        seconds[what] = seconds.get(what, 0) + ended - began
    sys.stdout.write("; ".join(f"{what} for {took:.1f} s" for what, took in seconds.items()) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--wait":
        sys.exit(not waits(sys.argv[2]))
    watch(sys.argv[1])
