"""``scripts/odooops`` on a real database: what all of them refuse; queue a run, wait for it, cancel it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.conftest import Connect
from tests.db.world import WORKER, World, call, new_project, new_workflow
from tests.support.docker import PATIENCE, ROOT
from tests.support.postgres import Cluster
from tests.support.scripts import SCRIPTS, environ_of, error, script

SECRET = "".join(("hun", "ter22"))
RUN = str(uuid.UUID(int=1))
NAMES = ("setup_ops_schema.sh", "env_create.sh", "env_wait_ready.sh", "env_destroy.sh")
WORDS = {"env_create.sh": ["--project=acme", "--type=build"]} | {name: [RUN] for name in NAMES[2:]}


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_help_says_how_it_is_called_and_what_its_exit_codes_mean(name: str) -> None:
    done = script(name, "--help")
    assert done.returncode == 0
    assert f"  {name} " in done.stdout
    assert "SUPABASE_URL" in done.stdout
    codes = done.stdout.split("Exit codes:")[1]
    assert {"0", "2", "6", "7"} <= set(re.findall(r"\d", codes))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "set OPS_WORKER_DATABASE_URL, DATABASE_URL or SUPABASE_URL to postgresql://"),
        (f"https://{SECRET}.supabase.co", "DATABASE_URL is the address of an API"),
        (f"mysql://root:{SECRET}@127.0.0.1/ops", "DATABASE_URL must begin with postgresql://"),
        (f"postgresql://worker:{SECRET}/@127.0.0.1/ops", "must be percent-encoded"),
        (f"postgresql://worker:{SECRET}%@127.0.0.1/ops", "must be written %25"),
    ],
)
def test_a_wrong_url_is_one_line_that_does_not_quote_it(name: str, url: str, says: str) -> None:
    done = script(name, *WORDS.get(name, []), DATABASE_URL=url)
    assert done.returncode == 2
    assert says in error(done)
    assert SECRET not in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_database_is_one_line_and_code_7(name: str, cluster: Cluster) -> None:
    done = script(name, *WORDS.get(name, []), DATABASE_URL=cluster.url("no_such_database"))
    assert done.returncode == 7
    assert 'database "no_such_database" does not exist' in error(done)


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_database_without_the_schema_is_one_line(name: str, empty_db_url: str) -> None:
    done = script(name, *WORDS[name], DATABASE_URL=empty_db_url)
    assert done.returncode == 6
    assert re.search(r"(relation|schema) \"ops\b.* does not exist", error(done))


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("setup_ops_schema.sh", ["--verify"], "unknown argument '--verify'"),
        ("setup_ops_schema.sh", ["--workdir", "x"], "--workdir goes with --cli"),
        ("env_create.sh", ["--type", "build"], "--project is missing"),
        ("env_create.sh", ["--project", "acme"], "--type: expected build,"),
        ("env_create.sh", ["--project", "acme", "--type", "tests"], "or upgrade, got 'tests'"),
        ("env_create.sh", ["--project", "acme", "--type"], "--type needs a value"),
        ("env_create.sh", ["--project=acme", "--type=test", "--commit=HEAD"], "--commit: expected 7 to 64 hexadecimal"),
        ("env_create.sh", ["acme", "build", "main"], "expected PROJECT TYPE REF SHA [ENVIRONMENT], got 3 arguments"),
        ("env_create.sh", ["acme", "build", "main", "4f2a91c", "build", "x"], "[ENVIRONMENT], got 6 arguments"),
        ("env_create.sh", ["acme", "build", "main", ""], "SHA is empty"),
        ("env_create.sh", ["--ref=x", "acme", "build", "main", "4f2a91c"], "REF and --ref mean the same"),
        ("env_wait_ready.sh", [], "expected RUN [TIMEOUT] [INTERVAL], got 0 arguments"),
        ("env_wait_ready.sh", [RUN, "9", "2", "x"], "expected RUN [TIMEOUT] [INTERVAL], got 4 arguments"),
        ("env_wait_ready.sh", [RUN, "9", "soon"], "--interval needs a whole number, not 'soon'"),
        ("env_wait_ready.sh", ["1; drop schema ops"], "is not the id of a run"),
        ("env_wait_ready.sh", [RUN, "--timeout", "soon"], "--timeout needs a whole number"),
        ("env_destroy.sh", [RUN, RUN], "expected RUN, got 2 arguments"),
    ],
)
def test_wrong_arguments_are_one_line_and_touch_nothing(name: str, words: list[str], says: str) -> None:
    done = script(name, *words, DATABASE_URL="postgresql://nobody@127.0.0.1:9/ops")
    assert done.returncode == 2
    assert says in error(done)


@pytest.mark.parametrize("in_query", [False, True])
@pytest.mark.parametrize("variable", ["SUPABASE_URL", "DATABASE_URL", "OPS_WORKER_DATABASE_URL"])
async def test_each_variable_may_hold_the_database_s_url_and_its_password_is_not_an_argument(
    tcp_cluster: Cluster, tmp_path: Path, variable: str, *, in_query: bool
) -> None:
    spy = tmp_path / "psql"
    spy.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/seen\nexec "$REAL" "$@"\n')
    spy.chmod(0o755)
    real = shutil.which("psql", path=environ_of()["PATH"])
    assert real is not None
    password = f"{SECRET}%: \\x/ü"
    tcp_cluster.execute(f"create role odd login superuser password '{password}'")
    try:
        with tcp_cluster.database(tcp_cluster.template()) as name:
            url = tcp_cluster.url(name, user="odd", host="127.0.0.1", password=password)
            if in_query:
                login, at, rest = url.partition("@")
                user, _, encoded = login.rpartition(":")
                url = f"{user}{at}{rest}?password={encoded}&connect_timeout=9"
            names = ["SUPABASE_URL", "DATABASE_URL", "OPS_WORKER_DATABASE_URL"]
            less = dict.fromkeys(names[: names.index(variable)], "mysql://another")
            path = f"{tmp_path}:{environ_of()['PATH']}"
            environ = {**less, variable: url, "REAL": real}
            done = script("setup_ops_schema.sh", "--verify-only", cwd=ROOT, PATH=path, **environ)
    finally:
        tcp_cluster.execute("drop role odd")
    assert done.returncode == 0, done.stderr
    assert "127.0.0.1" in (tmp_path / "seen").read_text()
    assert SECRET not in (tmp_path / "seen").read_text()


# --- env_create.sh ----------------------------------------------------------------------------------------------------


FLAGS = ["--project=acme", "--type", "build", "--ref=feature/x", "--commit", "4F2A91C"]
PLACES = ["acme", "build", "feature/x", "4F2A91C"]


REF_AND_COMMIT = {"git_ref": "feature/x", "git_commit": "4f2a91c"}


@pytest.mark.parametrize(
    ("words", "metadata"), [(FLAGS, REF_AND_COMMIT), (PLACES, REF_AND_COMMIT), (FLAGS[:3], {})],
    ids=["flags", "positions", "no ref"],
)  # fmt: skip
async def test_create_queues_the_run_and_prints_only_its_id(
    world: World, db_url: str, words: list[str], metadata: dict[str, str]
) -> None:
    done = script("env_create.sh", *words, DATABASE_URL=db_url)
    assert done.returncode == 0, done.stderr
    run = await world.row(uuid.UUID(done.stdout.strip()))
    assert (run["project_id"], run["workflow_id"], run["status"]) == (world.project, world.workflow, "queued")
    assert json.loads(run["metadata"]) == metadata
    ref_and_commit = ", ref feature/x, commit 4f2a91c" if metadata else ""
    assert done.stderr == f"env_create.sh: run #1 of acme is queued{ref_and_commit}\n"


async def test_the_same_key_is_the_same_run_of_its_project(world: World, db_url: str) -> None:
    await new_workflow(world.db, await new_project(world.db, "other"))
    words = ("--type=build", "--ref=main", "--key=push 'n'")
    first, again, other = (
        script("env_create.sh", f"--project={slug}", *words, DATABASE_URL=db_url) for slug in ("acme", "acme", "other")
    )
    assert first.stdout == again.stdout != other.stdout
    assert [done.returncode for done in (first, again, other)] == [0, 0, 0]
    differs = script("env_create.sh", "--project=acme", *words, "--commit=4f2a91c", DATABASE_URL=db_url)
    assert differs.returncode == 5
    assert "used for another request" in error(differs)
    assert await world.db.fetchval("select count(*) from ops.runs") == 2


async def test_create_takes_the_only_enabled_workflow_or_the_named_one(world: World, db_url: str) -> None:
    second = await new_workflow(world.db, world.project, "second")
    off = await new_workflow(world.db, world.project, "off")
    await world.db.execute("update ops.workflows set enabled = false where id = $1", off)
    named = [*FLAGS[:3], "--workflow=second"]
    for words in (named, [*PLACES, "second"]):
        done = script("env_create.sh", *words, DATABASE_URL=db_url)
        assert (await world.row(uuid.UUID(done.stdout.strip())))["workflow_id"] == second
    await world.db.execute("insert into ops.projects (workspace_key, slug, name, odoo_version, status)"
                           " values ('old', 'old', 'Old', '18.0', 'archived')")  # fmt: skip
    for words, says in (
        (FLAGS[:3], "workflows of type build: choose one with --workflow: build, second"),
        ([*FLAGS[:3], "--workflow=off"], "project acme has no enabled workflow off of type build"),
        (["--project=acme", "--type=deploy"], "project acme has no enabled workflow of type deploy"),
        (["--project=nowhere", "--type=build"], "there is no project nowhere"),
        (["--project=old", "--type=build"], "project old is archived"),
    ):
        done = script("env_create.sh", *words, DATABASE_URL=db_url)
        assert (done.returncode, says in error(done)) == (5, True)


HOSTILE = "'; drop schema ops cascade; --\\ $$ :project \"\n\\! touch pwned"


async def test_no_argument_is_ever_sql(world: World, db_url: str, tmp_path: Path) -> None:
    run = await world.queue()
    for words in (
        ["--project", HOSTILE, "--type", "build"],
        ["--project", "acme", "--type", "build", "--workflow", HOSTILE],
        ["--project", "acme", "--type", "build", "--ref", HOSTILE, "--key", HOSTILE],
    ):
        done = script("env_create.sh", *words, cwd=tmp_path, DATABASE_URL=db_url)
        assert done.returncode in (0, 5), done.stderr
        assert len(done.stderr.splitlines()) == 1
    queued = await world.row(uuid.UUID(done.stdout.strip()))
    assert json.loads(queued["metadata"]) == {"git_ref": HOSTILE}
    assert queued["idempotency_key"] == f"{world.project}:{HOSTILE}"
    assert script("env_destroy.sh", str(run), "--reason", HOSTILE, cwd=tmp_path, DATABASE_URL=db_url).returncode == 0
    assert (await world.row(run))["error_message"] == HOSTILE
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []


# --- env_wait_ready.sh and env_destroy.sh -----------------------------------------------------------------------------


async def finished(world: World, exit_code: int, message: str | None = None) -> str:
    """A run that ended with that code."""
    run = await world.running()
    await call(world.db, "append_run_log", run, "info", "the only line", p_worker_id=WORKER)
    await call(world.db, "complete_workflow_run", run, exit_code, message, p_worker_id=WORKER)
    return str(run)


async def test_wait_exits_by_the_outcome(world: World, db_url: str) -> None:
    def wait(run: str, *words: str) -> subprocess.CompletedProcess[str]:
        return script("env_wait_ready.sh", run, *words, DATABASE_URL=db_url)

    good = wait(await finished(world, 0))
    assert (good.returncode, good.stdout) == (0, "")
    assert good.stderr.splitlines() == ["the only line", "env_wait_ready.sh: run #1 succeeded"]
    bad = wait(await finished(world, 3, "two\nlines"))
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.splitlines() == ["the only line", "env_wait_ready.sh: run #2 failed (failed): two lines"]
    quiet = wait(await finished(world, 0), "--quiet")
    assert quiet.stderr == "env_wait_ready.sh: run #3 succeeded\n"

    queued = str(await world.queue())
    for words in (["--timeout=0"], ["0"], ["1", "1"]):
        late = wait(queued, *words)
        assert (late.returncode, late.stdout) == (4, "")
        assert late.stderr.splitlines()[-1] == f"env_wait_ready.sh: run #4 is still queued after {words[0][-1]} s"
    assert await world.status(uuid.UUID(queued)) == "queued"

    gone = script("env_destroy.sh", queued, "--reason=not needed", DATABASE_URL=db_url)
    assert (gone.returncode, gone.stdout) == (0, "canceled\n")
    canceled = wait(queued)
    assert (canceled.returncode, canceled.stdout) == (3, "")
    assert canceled.stderr == "env_wait_ready.sh: run #4 was canceled: not needed\n"

    nothing = wait(str(uuid.uuid4()))
    assert nothing.returncode == 5
    assert "there is no run" in error(nothing)


async def test_wait_prints_the_url_of_a_served_run_while_it_is_served(world: World, db_url: str) -> None:
    def wait(*words: str) -> subprocess.CompletedProcess[str]:
        return script("env_wait_ready.sh", str(run), *words, DATABASE_URL=db_url)

    run, url = await world.running(), "https://acme-main.preview.example"
    assert wait("--timeout=0").returncode == 4
    await call(world.db, "append_run_log", run, "info", "the only line", p_worker_id=WORKER)
    await call(world.db, "mark_ready", run, WORKER, None, url)
    ready = wait()
    assert (ready.returncode, ready.stdout) == (0, f"{url}\n")
    assert ready.stderr.splitlines()[1:] == ["the only line", "env_wait_ready.sh: run #1 is ready"]
    destroyed = script("env_destroy.sh", str(run), DATABASE_URL=db_url)
    assert destroyed.stdout == "running\n"
    assert (wait("--timeout=0").returncode, wait("--timeout=0").stdout) == (4, ""), "it is about to stop"
    await call(world.db, "complete_workflow_run", run, None, p_worker_id=WORKER, p_reason="canceled")
    assert (wait().returncode, wait().stdout) == (3, "")


async def test_wait_prints_no_url_of_a_run_whose_time_of_serving_is_over(world: World, db_url: str) -> None:
    run = await world.running()
    await call(world.db, "mark_ready", run, WORKER, None, "http://127.0.0.1:1")
    await call(world.db, "complete_workflow_run", run, 0, p_worker_id=WORKER, p_reason="ttl")
    over = script("env_wait_ready.sh", str(run), DATABASE_URL=db_url)
    assert (over.returncode, over.stdout) == (1, "")
    assert error(over) == "run #1 is no longer served: its time is over (serve.ttl_seconds)"


async def test_destroy_answers_by_the_state_of_the_run(world: World, db_url: str) -> None:
    def destroy(run: uuid.UUID) -> subprocess.CompletedProcess[str]:
        return script("env_destroy.sh", str(run), DATABASE_URL=db_url)

    queued = await world.queue()
    assert [(destroy(queued).returncode, destroy(queued).stdout) for _ in range(2)] == [(0, "canceled\n")] * 2
    running = await world.running()
    asked = destroy(running)
    assert (asked.returncode, asked.stdout) == (0, "running\n")
    assert (await world.row(running))["cancel_requested_at"] is not None
    for run, says in ((await world.run_in("succeeded"), "already succeeded"), (uuid.uuid4(), "there is no such run")):
        done = destroy(run)
        assert done.returncode == 5
        assert says in error(done)


async def test_wait_shows_every_line_once_and_in_order(world: World, db_url: str) -> None:
    run = await world.running()
    env = environ_of(DATABASE_URL=db_url)
    process = await asyncio.create_subprocess_exec(
        SCRIPTS / "env_wait_ready.sh", str(run), "--interval=1",
        env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    said: list[str] = []

    async def journal(start: int, count: int) -> None:
        await world.db.fetchval(
            "select ops.append_run_logs($1, $2, null, $3, $4, $5, array_fill(now(), array[$6::int]))",
            run, WORKER, start, "\n".join(f"line {n}" for n in range(start, start + count)), "i" * count, count,
        )  # fmt: skip

    async def until(line: str) -> None:
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while not said or said[-1] != line:
                raw = await process.stderr.readline()
                assert raw, said
                said.append(raw.decode().rstrip("\n"))

    await journal(1, 2500)  # more than it takes at once
    await until("line 2500")
    await call(world.db, "append_run_log", run, "info", "appended", p_worker_id=WORKER)
    await until("appended")
    await journal(2501, 10)  # numbered below what was appended before
    await until("line 2510")
    await call(world.db, "append_run_log", run, "info", "", p_worker_id=WORKER)
    for n in (2, 1):
        await call(world.db, "add_run_artifact", run, f"out/{n}", f"file:///out/{n}", p_worker_id=WORKER)
    await call(world.db, "complete_workflow_run", run, 0, p_worker_id=WORKER)
    async with asyncio.timeout(PATIENCE):
        out, rest = await process.communicate()
    said += rest.decode().splitlines()
    assert process.returncode == 0
    assert out.decode() == "file:///out/2\n"
    expected = [f"line {n}" for n in range(1, 2501)] + ["appended"] + [f"line {n}" for n in range(2501, 2511)] + [""]
    assert [line for line in said if not line.startswith("env_wait_ready.sh: ")] == expected


async def test_wait_removes_terminal_sequences_from_the_log(world: World, db_url: str) -> None:
    run = await world.running()
    for text in ("\x1b[31mred\x1b[0m\r", "\x1b]0;title\x07", "\u009b2J", "tab\there"):
        await call(world.db, "append_run_log", run, "info", text, p_worker_id=WORKER)
    await call(world.db, "complete_workflow_run", run, 1, "\x1b[2Jgone", p_worker_id=WORKER)
    done = script("env_wait_ready.sh", str(run), DATABASE_URL=db_url)
    assert done.stderr.splitlines()[:4] == ["red", "�]0;title�", "�2J", "tab\there"]
    assert not set(done.stderr) & set("\x1b\x07\u009b\r")


async def test_wait_outlives_a_restart_of_the_database(tmp_path: Path, connect: Connect) -> None:
    with Cluster() as server:
        name = server.template()
        db = await connect(server.url(name))
        project = await new_project(db, "acme")
        world = World(db, project, await new_workflow(db, project))
        run = await world.running()
        process = await asyncio.create_subprocess_exec(
            SCRIPTS / "env_wait_ready.sh", str(run), "--interval=1",
            env=environ_of(DATABASE_URL=server.url(name)), stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            assert b"is running" in await process.stderr.readline()
            server.stop()
            assert b"database: " in await process.stderr.readline()
            server.start()
            world = World(await connect(server.url(name)), project, world.workflow)
            await call(world.db, "complete_workflow_run", run, 0, p_worker_id=WORKER)
            await process.communicate()
        assert process.returncode == 0
