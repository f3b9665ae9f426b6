"""The image's health check: exits 0 while the worker renews its leases, else 1."""

from __future__ import annotations

import os
import sys
import time
import urllib.request

HEARTBEAT = "ops_worker_last_heartbeat_timestamp_seconds "
STALE_SECONDS = 60.0
"""Six missed heartbeats: the event loop stands still, or the database has been away for that long."""


def main() -> int:
    """Asks the worker's own metrics for its last heartbeat."""
    port = os.environ["OPS_WORKER_METRICS_ADDRESS"].rpartition(":")[2]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=4) as answer:
            lines = answer.read().decode().splitlines()
    except OSError as error:
        print(f"no answer: {error}")
        return 1
    last = next((float(line.removeprefix(HEARTBEAT)) for line in lines if line.startswith(HEARTBEAT)), 0.0)
    age = time.time() - last
    print(f"last heartbeat {age:.0f} s ago" if last else "no heartbeat yet")
    return 0 if age < STALE_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
