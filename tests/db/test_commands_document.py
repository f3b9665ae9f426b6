"""docs/commands.md is true: the login of a member, the keys of the JSON, the exit codes, the list of commands."""

from __future__ import annotations

import json
import re
from uuid import UUID

from tests.db.crowd import Crowd
from tests.db.persons import ops
from tests.db.world import INSTANCE, WORKER, call
from tests.support.docker import ROOT
from tests.support.markdown import Document
from worker.cli.commands import COMMANDS, EXIT_CODES

DOCUMENT = Document(ROOT / "docs" / "commands.md")


def words(cell: str) -> list[str]:
    return re.findall(r"[^,\s][^,]*", cell)


def keys_of(command: str) -> set[str]:
    """The keys that the document gives to that command; ``those of X`` stands for others."""
    [cell] = [row[1] for row in DOCUMENT.table("command") if command in words(row[0])]
    keys = set()
    for word in words(re.sub(r" \([^)]*\)|: objects with .*", "", cell)):
        if found := re.search(r"those of (.*)", word):
            keys |= keys_of(found[1])
        else:
            keys.add(word.removeprefix("and "))
    return keys


def test_the_exit_codes_are_those_of_the_program() -> None:
    assert {int(row[0]): row[1] for row in DOCUMENT.table("exit code")} == EXIT_CODES


def test_every_command_for_a_person_is_documented() -> None:
    text = DOCUMENT.path.read_text()
    names = [command.name for command in COMMANDS if "json" in command.options]
    assert [name for name in names if f"`{name}" not in text] == []


async def test_the_keys_are_those_of_the_document(crowd: Crowd, db_url: str) -> None:
    await call(crowd.world.db, "complete_workflow_run", crowd.run, 0, None, WORKER, INSTANCE)
    await call(crowd.world.db, "register_worker", WORKER, INSTANCE)
    for _ in range(2):
        await crowd.world.queue(approval="pending")
    red = await crowd.world.run_in("running")
    fail = "update ops.runs set status = 'failed', tests = $2 where id = $1"
    await crowd.world.db.execute(fail, red, '{"failing": ["t"]}')
    for line in (
        "runs list", "runs wait acme#1", "runs show acme#1", "runs known acme#4", "runs logs acme#1",
        "runs retry acme#1", "runs enqueue acme/build", "runs cancel acme#5", "runs approve acme#2",
        "runs reject acme#3", "queue", "pause", "pause acme", "resume acme", "resume", "drain host-a",
        "drain host-a --undo", "workers", "projects", "workflows", "tools list",
        f"tools sync {ROOT}/deploy/tools/odoo/tools.toml", "members", "doctor",
        f"projects sync {ROOT}/deploy/hello/project.toml", f"members add hello {UUID(int=1)} viewer",
        f"members remove hello {UUID(int=1)}", "hooks set hello", "hooks remove hello",
        "db status", "db verify", "db create-worker build1",
        "db create-console web", "prune --artifact-store file:///tmp", "db rollback --yes",
        "db migrate",
    ):  # fmt: skip
        if line == "db verify":
            await call(crowd.world.db, "unregister_worker", WORKER, INSTANCE)
            await crowd.world.db.execute("drop function ops.health")  # which it then reports
        done = await ops(db_url, *line.split(), "--json")
        assert done.out, done
        found = json.loads(done.out)
        first = found[0] if isinstance(found, list) else found
        command = re.sub(r" (acme|hello|build1|web|host-a|--|/).*", "", line)
        assert (line, set(first)) == (line, keys_of(command))


async def test_a_member_logs_in_as_the_document_says(crowd: Crowd, db_url: str) -> None:
    user = str(crowd.users["viewer"])
    [sql] = [block for block in DOCUMENT.blocks("sql") if "create role alice" in block]
    await crowd.world.db.execute(sql.replace("11111111-2222-4333-8444-555555555555", user))
    url = db_url.replace("postgres@", "alice@")
    assert [row["run"] for row in (await ops(url, "runs", "list", "--json")).json] == ["acme#1"]
    assert (await ops(url, "runs", "show", "acme#1")).status == 0
    options = re.search(r"`postgresql://alice:…@db.example/ops\?(options=\S+)1111…`", DOCUMENT.path.read_text())
    assert options is not None
    await crowd.world.db.execute("alter role alice reset all")
    for given, runs in ((f"&{options[1]}{user}", ["acme#1"]), ("", [])):
        assert [row["run"] for row in (await ops(url + given, "runs", "list", "--json")).json] == runs
