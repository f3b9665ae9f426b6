"""Arguments that nobody means: every function answers or refuses in words, and nothing it stores is broken."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable
from random import Random
from typing import Any

import asyncpg
import pytest

from tests.db.world import INSTANCE, WORKER, World

ROUNDS = int(os.environ.get("OPS_WORKER_TEST_EXAMPLES", "60"))
"""Calls of each function; more by the environment."""

TEXTS = ["", "x", "x" * 100_000, "\x01\x1b[31m", "😀", "a'b\"c\\d", "%s{}", "; drop table ops.runs", "..", "info"]
NUMBERS = ["0", "-1", "1", "2147483647", "-2147483648"]
TIMES = ["infinity", "-infinity", "294276-12-31 23:59:59+00", "4713-01-01 00:00:00+00 BC", "now", "2026-02-28 10:00+14"]
JSONS = ["{}", "[]", "1", "null", '"x"', '{"a": 1e400000}', '{"a": [[[[]]]]}', '{"reason": "x", "exit_code": {}}']
JSONS.append('{"deep": ' + "[" * 1_000 + "]" * 1_000 + "}")

VALUES: dict[str, Callable[[Random], str | None]] = {
    "text": lambda random: random.choice(TEXTS),
    "integer": lambda random: random.choice(NUMBERS),
    "bigint": lambda random: random.choice([*NUMBERS, str(2**63 - 1), str(-(2**63)), str(2**40)]),
    "boolean": lambda random: random.choice(["true", "false"]),
    "uuid": lambda random: str(uuid.UUID(int=random.choice([0, 1, 2**128 - 1]))),
    "jsonb": lambda random: random.choice(JSONS),
    "timestamp with time zone": lambda random: random.choice(TIMES),
    "text[]": lambda random: random.choice(["{}", "{NULL}", '{"",x}', "{{a,b},{c,d}}", "[5:6]={a,b}", "{info}"]),
    "bigint[]": lambda random: random.choice(["{}", "{NULL}", "{0}", "{1,1}", "{1099511627776}", "[5:6]={1,2}"]),
    "timestamp with time zone[]": lambda random: random.choice(["{}", "{NULL}", "{infinity}", "{now,now}", "{now}"]),
}  # fmt: skip
MEANT = {
    "p_worker_id": WORKER,
    "p_instance_id": str(INSTANCE),
    "p_level": "info",
    "p_message": "said",
    "p_metadata": "{}",
    "p_event_type": "info",
    "p_artifact_key": "a/b",
    "p_checksum": "sha256:" + "0" * 64,
    "p_size_bytes": "1",
}
"""What a parameter is most of the time, so that the calls get beyond the first check."""

PLAIN_REFUSALS = ("22", "23", "54")
"""Classes of SQLSTATEs that say what is wrong with the data: not an internal error, not a crash."""


async def functions(db: asyncpg.Connection) -> list[tuple[str, list[str], list[str]]]:
    """Every function of the schema, with the names and types of its parameters."""
    rows = await db.fetch(
        "select p.proname, coalesce(p.proargnames[:p.pronargs], '{}') as names, array(select format_type(t, null) "
        "from unnest(p.proargtypes) with ordinality as a (t, n) order by n) as types "
        "from pg_proc as p where p.pronamespace = 'ops'::regnamespace and p.prorettype <> 'trigger'::regtype order by 1"
    )
    return [(row["proname"], row["names"], row["types"]) for row in rows]


async def call(
    db: asyncpg.Connection, name: str, parameters: list[str], types: list[str], values: list[str | None]
) -> None:
    """Calls it, and judges what comes of that."""
    places = ", ".join(f"${n}::text::{kind}" for n, kind in enumerate(types, 1))
    try:
        async with db.transaction():
            answer = await db.fetchval(f"select to_jsonb(f) from ops.{name}({places}) as f limit 1", *values)
    except asyncpg.PostgresError as error:
        if error.sqlstate[:2] not in PLAIN_REFUSALS:
            raise AssertionError(f"{name}{values!r:.300}: {error.sqlstate} {error}") from error
        named = error.sqlstate != "22023" or names_one(str(error), parameters)  # which our functions raise
        if not named:
            raise AssertionError(f"{name}: {error}") from error
    else:
        judge(name, parameters, json.loads(answer, parse_int=float) if answer is not None else None)


def names_one(sentence: str, parameters: list[str]) -> bool:
    """Whether it names a parameter, or the column or the element that such a one becomes."""
    words = "|".join(re.escape(parameter.removeprefix("p_").removesuffix("s")) for parameter in parameters)
    return re.search(rf"(?<![a-z])({words})s?(?![a-z])", sentence) is not None


def judge(name: str, parameters: list[str], answer: Any) -> None:
    """A refusal has a code of one word and a short sentence, which names the argument if that was at fault."""
    if isinstance(answer, dict) and answer.get("success") is False:
        assert answer["code"].replace("_", "").isalpha()
        assert 0 < len(answer["error"]) < 1_000, name
        if answer["code"].startswith("bad_"):
            assert names_one(answer["error"], parameters), f"{name}: {answer}"


@pytest.mark.parametrize("seed", range(2))
async def test_no_argument_does_worse_than_a_refusal(world: World, seed: int) -> None:
    random, db = Random(seed), world.db
    for name, parameters, types in await functions(db):
        unknown = set(types) - set(VALUES)
        assert not unknown, f"{name}: no odd values for {unknown}"
        for _ in range(ROUNDS):
            run = await world.run_in(random.choice(["queued", "running", "running", "succeeded"]))
            await db.execute("update ops_private.leases set worker_id = $1, instance_id = $2", WORKER, INSTANCE)
            meant = {**MEANT, "p_run_id": str(run)}
            values = [
                None if random.random() < 0.2
                else meant[parameter] if parameter in meant and random.random() < 0.8
                else VALUES[kind](random)
                for parameter, kind in zip(parameters, types, strict=True)
            ]  # fmt: skip
            await call(db, name, parameters, types, values)
    stored = await db.fetchrow(
        "select (select count(*) from ops.run_logs) as lines, "
        "(select count(*) from ops.run_artifacts) as files, (select count(*) from ops.run_events) as events"
    )
    assert all(stored), f"no call got far enough: {stored}"
    await world.queue()


RUN = "00000000-0000-0000-0000-000000000001"
AT_FAULT = [
    ("append_run_log", "level", {"run_id": RUN, "level": "loud", "message": "x"}),
    ("append_run_log", "message", {"run_id": RUN, "level": "info", "message": None}),
    ("append_run_log", "metadata", {"run_id": RUN, "level": "info", "message": "x", "metadata": "[]"}),
    ("add_run_event", "event_type", {"run_id": RUN, "event_type": "party", "message": "x"}),
    ("add_run_event", "message", {"run_id": RUN, "event_type": "info", "message": None}),
    ("add_run_event", "payload", {"run_id": RUN, "event_type": "info", "message": "x", "payload": "[]"}),
    ("heartbeat", "lease_seconds", {"worker_id": "w", "instance_id": RUN, "lease_seconds": 0}),
    ("search_run_logs", "project_id", {"query": "x"}),
    ("search_run_logs", "query", {"query": "", "run_id": RUN}),
    ("search_run_logs", "limit", {"query": "x", "run_id": RUN, "limit": 0}),
    ("search_run_logs", "before_seq", {"query": "x", "run_id": RUN, "before_run_id": RUN}),
]


@pytest.mark.parametrize(("function", "at_fault", "arguments"), AT_FAULT)
async def test_a_refusal_names_the_argument_at_fault(
    db: asyncpg.Connection, function: str, at_fault: str, arguments: dict[str, Any]
) -> None:
    given = ", ".join(f"p_{name} => ${n}" for n, name in enumerate(arguments, 1))
    try:
        answer = await db.fetchval(f"select to_jsonb(f) from ops.{function}({given}) as f", *arguments.values())
    except asyncpg.InvalidParameterValueError as error:
        sentence = str(error)
    else:
        sentence = json.loads(answer)["error"]
    assert names_one(sentence, [at_fault]), sentence
