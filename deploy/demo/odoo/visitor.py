"""A visitor of a site: asks for its login page five times a second until SIGTERM, then prints what the answers were.

visitor.py URL
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


def main() -> None:
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    seen: list[tuple[float, str]] = []
    while not ending.wait(0.2):
        began = time.monotonic()
        seen.append((began, answer(sys.argv[1])))
    seen.append((time.monotonic(), ""))
    seconds: dict[str, float] = {}
    for (began, what), (ended, _) in pairwise(seen):
        seconds[what] = seconds.get(what, 0) + ended - began
    sys.stdout.write("; ".join(f"{what} for {took:.1f} s" for what, took in seconds.items()) + "\n")


if __name__ == "__main__":
    main()
