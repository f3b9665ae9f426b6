"""The worker, with points at which it dies: ``OPS_FAULT_POINTS="logged@3=kill" python -m tests.faults.doomed``.

The worker itself knows nothing of this: each point is the edge of one of its methods, wrapped here before it
starts. What is not named in the variable is not wrapped. ``@3`` is the third time; ``kill`` is SIGKILL to
itself, ``stop`` SIGSTOP, ``block=FILE`` an event loop that does not turn until that file exists.

``OPS_PATIENCE="worker.database.connection.CALL_TIMEOUT=3"`` makes one of the worker's time limits shorter,
``OPS_VERSION`` makes it say that it is of another version.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import worker.__main__ as program
from worker.artifacts.store import ArtifactStore
from worker.cli import startup
from worker.database.outbox import Outbox
from worker.database.queue import Queue
from worker.engine.containers import Container
from worker.engine.engine import Engine

BEFORE, AFTER = "before", "after"
POINTS: dict[str, tuple[type, str, str]] = {
    "registered": (Queue, "register", AFTER),
    "claimed": (Queue, "claim", AFTER),
    "adopted": (Queue, "adopt", AFTER),
    "started": (Queue, "start", AFTER),
    "filled": (Engine, "fill_cache", AFTER),
    "kept": (Engine, "keep_cache", AFTER),
    "networked": (Engine, "create_network", AFTER),
    "joined": (Engine, "create_project_network", AFTER),
    "answered": (Queue, "mark_ready", BEFORE),  # the health path of a served run has answered
    "ready": (Queue, "mark_ready", AFTER),
    "created": (Engine, "create", AFTER),  # the services of a run first, then its own container; so are they started
    "told": (Queue, "record_container", AFTER),  # the container is created and recorded; it is not started
    "up": (Container, "start", AFTER),
    "logging": (Queue, "append_logs", BEFORE),
    "logged": (Queue, "append_logs", AFTER),
    "stopped": (Container, "stop", AFTER),
    "exited": (ArtifactStore, "collect", BEFORE),
    "uploaded": (Queue, "add_artifact", BEFORE),  # the file is stored, its row is not
    "recorded": (Queue, "add_artifact", AFTER),
    "completing": (Queue, "complete", BEFORE),
    "completed": (Queue, "complete", AFTER),
    "removed": (Container, "remove", AFTER),
    "alone": (Engine, "remove_beside", AFTER),
    "sent": (Outbox, "settle", BEFORE),
    "parted": (Engine, "trim_project_networks", BEFORE),
}


def happen(action: str) -> None:
    kind, _, file = action.partition("=")
    if kind == "block":
        while not Path(file).exists():
            time.sleep(0.05)
    else:
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[kind])


def wrapped(name: str, nth: int, action: str) -> None:
    """Makes the action happen at the ``nth`` passing of that point."""
    owner, method, when = POINTS[name]
    original: Callable[..., Awaitable[Any]] = getattr(owner, method)
    passed = 0

    def passing() -> None:
        nonlocal passed
        passed += 1
        if passed == nth:
            happen(action)

    @wraps(original)
    async def call(*args: Any, **named: Any) -> Any:
        if when == BEFORE:
            passing()
        try:
            value = await original(*args, **named)
        except asyncio.CancelledError:
            if name == "stopped":  # the end of the container that it brought about was noticed first
                passing()
            raise
        if when == AFTER and not (name == "claimed" and value.claim is None):
            passing()
        return value

    setattr(owner, method, call)


if __name__ == "__main__":
    for point in filter(None, os.environ.get("OPS_FAULT_POINTS", "").split(",")):
        place, _, what = point.partition("=")
        title, _, count = place.partition("@")
        wrapped(title, int(count or 1), what)
    for limit in filter(None, os.environ.get("OPS_PATIENCE", "").split(",")):
        name, _, seconds = limit.partition("=")
        owner, _, constant = name.rpartition(".")
        module, _, timings = owner.rpartition(".")
        if timings.isupper():  # a frozen group of times
            shorter = replace(getattr(importlib.import_module(module), timings), **{constant: float(seconds)})
            setattr(importlib.import_module(module), timings, shorter)
        else:
            assert hasattr(importlib.import_module(owner), constant), name
            setattr(importlib.import_module(owner), constant, float(seconds))
    if pretended := os.environ.get("OPS_VERSION"):
        vars(startup)["__version__"] = pretended
    program.main()
