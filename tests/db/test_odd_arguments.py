"""Arguments that no caller means: every function answers or refuses in words.

Each example is a run in some state and one call; what a failure is made small to is the one argument at fault.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.db.world import INSTANCE, WORKER, World, new_project, new_workflow
from tests.support.postgres import Cluster
from tests.support.schema import CATALOG

FUNCTIONS = sorted(set(re.findall(r"^function ops\.(\w+)\(", CATALOG.read_text(), re.MULTILINE)))
WRITING = {"append_run_log", "add_run_event", "add_run_artifact", "record_container", "record_report", "mark_ready"}
"""Of these, the first example, in which all is as it is meant, must succeed."""

THE_RUN = "the run"
MEANT = {
    "p_run_id": THE_RUN,
    "p_worker_id": WORKER,
    "p_instance_id": str(INSTANCE),
    "p_level": "info",
    "p_message": "said",
    "p_metadata": "{}",
    "p_payload": "{}",
    "p_event_type": "info",
    "p_container_id": "c",
    "p_tests": '{"passed": 1, "failed": 0, "skipped": 0, "failing": []}',
    "p_summary": "fine",
    "p_url": "http://127.0.0.1:8069",
    "p_details": "{}",
    "p_tools": '[{"tool_name": "t", "version": "1", "docker_image": "x"}]',
    "p_project": '{"slug": "s", "name": "s", "odoo_version": "19.0", "workflows": []}',
    "p_role": "viewer",
    "p_artifact_key": "a/b",
    "p_artifact_url": "file:///a/b",
    "p_content_type": "text/plain",
    "p_checksum": "sha256:" + "0" * 64,
    "p_size_bytes": "1",
    "p_expires_at": "2099-01-01 00:00:00+00",
}
"""What a parameter is unless it is the odd one, so that the calls get beyond the first check."""

TEXTS = ["", "x" * 100_000, "\x01\x1b[31m", "a'b\"c\\d", "%s{}", "; drop table ops.runs", "..", "info"]
TIMES = ["infinity", "-infinity", "294276-12-31 23:59:59+00", "4713-01-01 00:00:00+00 BC", "now"]
JSONS = ["[]", "1", "null", '"x"', '{"a": 1e400000}', '{"reason": "x", "exit_code": {}}']
JSONS.append('{"deep": ' + "[" * 1_000 + "]" * 1_000 + "}")
ARRAYS = {
    "text[]": ["{}", "{NULL}", '{"",x}', "{{a,b},{c,d}}", "[5:6]={a,b}", "{info}"],
    "timestamp with time zone[]": ["{}", "{NULL}", "{infinity}", "{now,now}", "{now}"],
}
ROWS = {
    table: len(re.findall(rf"^column {re.escape(table)}\.", CATALOG.read_text(), re.MULTILINE))
    for table in ("ops.runs", "ops.run_logs")
}
"""How many columns the tables have whose rows are parameters; the first is an id."""
ODD: dict[str, st.SearchStrategy[str]] = {
    "text": st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(TEXTS),
    "integer": st.integers(-(2**31), 2**31 - 1).map(str),
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
    "boolean": st.booleans().map(str),
    "uuid": st.uuids().map(str),
    "jsonb": st.dictionaries(st.text(max_size=9), st.none() | st.integers()).map(json.dumps) | st.sampled_from(JSONS),
    "json": st.sampled_from(JSONS),
    "bytea": st.binary().map(lambda data: "\\x" + data.hex()),
    "timestamp with time zone": st.datetimes().map(str) | st.sampled_from(TIMES),
    **{kind: st.sampled_from(values) for kind, values in ARRAYS.items()},
    **{table: st.just("()") | st.uuids().map(f"({{}}{',' * (size - 1)})".format) for table, size in ROWS.items()},
}

PLAIN_REFUSALS = ("22", "23", "54")
"""Classes of SQLSTATEs that say what is wrong with the data: not an internal error, not a crash."""


@dataclass(frozen=True)
class House:
    """A database with one project, asked from tests that are not coroutines."""

    runner: asyncio.Runner
    world: World

    def parameters(self, name: str) -> dict[str, str]:
        """The types of the function's parameters, by their names."""
        row = self.runner.run(
            self.world.db.fetchrow(
                "select coalesce(p.proargnames[:p.pronargs], array_fill('header'::text, array[p.pronargs::int])) "
                "as names, array(select format_type(t, null) "
                "from unnest(p.proargtypes) with ordinality as a (t, n) order by n) as types "
                "from pg_proc as p where p.oid = $1::text::regproc",
                f"ops.{name}",
            )
        )
        return dict(zip(row["names"], row["types"], strict=True))

    def call(self, name: str, types: dict[str, str], state: str, values: dict[str, str | None]) -> Any:
        """The answer to a call about a run in that state, None where it was refused; nothing of it stays."""
        return self.runner.run(self._call(name, types, state, values))

    async def _call(self, name: str, types: dict[str, str], state: str, values: dict[str, str | None]) -> Any:
        db = self.world.db
        places = ", ".join(f"${n}::text::{kind}" for n, kind in enumerate(types.values(), 1))
        transaction = db.transaction()
        await transaction.start()
        try:
            run = await self.world.run_in(state)
            await db.execute("update ops_private.leases set worker_id = $1, instance_id = $2", WORKER, INSTANCE)
            said = [str(run) if value == THE_RUN else value for value in values.values()]
            answer = await db.fetchval(f"select to_jsonb(f) from ops.{name}({places}) as f limit 1", *said)
            await self.world.queue()  # what was stored does not block it
        except asyncpg.PostgresError as error:
            judge_error(error, list(types))
            return None
        finally:
            await transaction.rollback()
        return json.loads(answer, parse_int=float) if answer is not None else None


@pytest.fixture(scope="module")
def house(cluster: Cluster) -> Iterator[House]:
    async def world(url: str) -> World:
        db = await asyncpg.connect(url)
        project = await new_project(db, "acme")
        return World(db, project, await new_workflow(db, project))

    with cluster.database(cluster.template()) as name, asyncio.Runner() as runner:
        made = House(runner, runner.run(world(cluster.url(name))))
        yield made
        runner.run(made.world.db.close())


@st.composite
def arguments(draw: st.DrawFn, types: dict[str, str]) -> dict[str, str | None]:
    """A value for each parameter, of which at most three are not as they are meant."""
    odd = draw(st.sets(st.sampled_from(list(types)), max_size=3)) if types else set()
    return {
        name: MEANT[name] if name in MEANT and name not in odd else draw(st.none() | ODD[kind])
        for name, kind in types.items()
    }


def names_one(sentence: str, parameters: list[str]) -> bool:
    """Whether it names a parameter, or the column or the element that such a one becomes."""
    words = "|".join(re.escape(parameter.removeprefix("p_").removesuffix("s")) for parameter in parameters)
    return re.search(rf"(?<![a-z])({words})s?(?![a-z])", sentence) is not None


def judge_error(error: asyncpg.PostgresError, parameters: list[str]) -> None:
    """An error says what is wrong with the data, and one of our functions' own (22023) which parameter."""
    assert error.sqlstate[:2] in PLAIN_REFUSALS, f"{error.sqlstate} {error}"
    assert error.sqlstate != "22023" or names_one(str(error), parameters), str(error)


def judge(name: str, parameters: list[str], answer: Any) -> None:
    """A refusal has a code of one word and a short sentence, which names the argument if that was at fault."""
    if isinstance(answer, dict) and answer.get("success") is False:
        assert answer["code"].replace("_", "").isalpha()
        assert 0 < len(answer["error"]) < 1_000, name
        if answer["code"].startswith("bad_"):
            assert names_one(answer["error"], parameters), f"{name}: {answer}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_argument_does_worse_than_a_refusal(house: House, name: str) -> None:
    types = house.parameters(name)
    answers = []

    @settings(max_examples=settings().max_examples // 2)
    @given(state=st.sampled_from(["running", "queued", "succeeded"]), values=arguments(types))
    def holds(state: str, values: dict[str, str | None]) -> None:
        answer = house.call(name, types, state, values)
        judge(name, list(types), answer)
        answers.append(answer)

    holds()
    if name in WRITING:
        assert any(answer and answer["success"] for answer in answers), "no call got far enough"
