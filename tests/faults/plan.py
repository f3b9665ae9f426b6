"""What happens in a random campaign of faults, all drawn from a seed: the runs, and the faults under them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

TROUBLE_SECONDS = 8.0
"""How long faults keep coming."""

WEIGHTS = {
    "kill": 5, "pause": 2, "drain": 1, "detach": 1, "late": 1,
    "cut": 1, "frozen": 1, "stalled": 1, "away": 1, "full": 1, "unheard": 3, "restart": 1,
    "engine_cut": 1, "engine_frozen": 1, "engine_stalled": 1, "engine_away": 1, "engine_error": 2,
    "engine_unheard": 2, "engine_broken": 2,
}  # fmt: skip
"""The faults, and how likely each is."""


@dataclass(frozen=True)
class Order:
    """A run to be queued."""

    lines: int
    pause: float
    exit_code: int
    big: bool
    ends: Literal["itself", "canceled", "timeout", "ttl"]
    after: float
    """Seconds until it is queued; for a cancelled one, as many again until the cancel."""
    services: int
    volume: bool
    caches: bool

    def __str__(self) -> str:
        return f"{self.ends}:{self.lines}+{self.services}{'v' * self.volume}{'c' * self.caches}"


@dataclass(frozen=True)
class Fault:
    """Something that happens to one of the parts."""

    what: str
    after: float
    seconds: float
    """How long it lasts, where it does."""
    host: str
    call: str
    """The request that is picked out, where one is."""

    def __str__(self) -> str:
        return f"{self.what}@{self.after:.1f}"


@dataclass(frozen=True)
class Plan:
    seed: int
    hosts: tuple[str, ...]
    orders: tuple[Order, ...]
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        kinds = " ".join(map(str, self.orders))
        return f"{len(self.hosts)} workers; {kinds}; {' '.join(map(str, self.faults))}"


ENGINE_CALLS = (
    "POST /v[0-9.]+/volumes/create",
    "GET /v[0-9.]+/volumes",
    "PUT /v[0-9.]+/containers/[^/]+/archive",
    "POST /v[0-9.]+/networks/create",
    "GET /v[0-9.]+/networks",
    "DELETE /v[0-9.]+/networks/",
    "POST /v[0-9.]+/networks/[^/]+/connect",
    "POST /v[0-9.]+/containers/create",
    "POST /v[0-9.]+/containers/[^/]+/start",
    "POST /v[0-9.]+/containers/[^/]+/(stop|kill)",
    "GET /v[0-9.]+/containers/[^/]+/json",
    "GET /v[0-9.]+/containers/[^/]+/logs.*follow=1",
    "GET /v[0-9.]+/containers/[^/]+/logs.*tail=1",
    "GET /v[0-9.]+/containers/[^/]+/archive",
    "DELETE /v[0-9.]+/containers/",
    "GET /v[0-9.]+/containers/json",
)
DATABASE_CALLS = (
    "register_worker", "heartbeat", "reap", "claim_next_run", "adopt_run", "adoptable_runs", "release_run",
    "start_workflow_run", "mark_ready", "append_run_logs", "add_run_artifact", "add_run_event", "complete_workflow_run",
)  # fmt: skip


def draw(seed: int) -> Plan:
    """The same for every call with that seed."""
    dice = random.Random(seed)
    hosts = ("a", "b")[: dice.randint(1, 2)]
    orders = tuple(
        Order(
            lines=dice.choice((0, 1, 50, 500, 5_000, 20_000)),
            pause=dice.choice((0.0, 0.05, 0.3)),
            exit_code=dice.choice((0, 0, 0, 3)),
            big=dice.random() < 0.3,
            ends=dice.choice(("itself", "itself", "itself", "canceled", "timeout", "ttl")),
            after=dice.uniform(0, TROUBLE_SECONDS / 2),
            services=dice.choice((0, 0, 1, 2)),
            volume=dice.random() < 0.5,
            caches=dice.random() < 0.5,
        )
        for _ in range(dice.randint(2, 5))
    )
    names = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
    drawn = [dice.choice(names) for _ in range(dice.randint(3, 8))]
    # Every host's lease may run out once in a seed: what is lost again and again is quarantined, as it should be.
    kinds = [name for n, name in enumerate(drawn) if name != "late" or "late" not in drawn[:n]]
    faults = tuple(
        Fault(
            what=name,
            after=dice.uniform(0.2, TROUBLE_SECONDS),
            seconds=dice.uniform(0.2, 4.0),
            host=dice.choice(hosts),
            call=dice.choice(DATABASE_CALLS if name == "unheard" else ENGINE_CALLS),
        )
        for name in kinds
    )
    return Plan(seed, hosts, orders, tuple(sorted(faults, key=lambda fault: fault.after)))
