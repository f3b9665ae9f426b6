"""``ops-worker runs …`` against a real database, as an operator, a member and a stranger."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import uuid

import pytest

from tests.db.crowd import Crowd
from tests.db.persons import as_role, ops
from tests.db.world import INSTANCE, NOW, WORKER, World, call, new_project, new_workflow, use
from tests.support.command import ops_worker
from tests.support.docker import until
from tests.support.postgres import Cluster
from tests.support.relay import Relay
from worker.database import control_plane

EVIL = "\x1b]0;owned\x07\x1b[2J\u202ebad\x9b1m"
SHOWN = "\\u202ebad\\x9b1m"


async def failed(world: World, message: str = "exit code 1", lines: tuple[tuple[str, str], ...] = ()) -> uuid.UUID:
    """A run that printed these lines and failed."""
    run = await world.running()
    for level, text in lines:
        await call(world.db, "append_run_log", run, level, text)
    await call(world.db, "complete_workflow_run", run, 1, message, WORKER, INSTANCE, "exit_code")
    return run


async def printed(world: World, run: uuid.UUID, first: int, *lines: str, marks: str = "") -> None:
    """The worker stores lines of the container, numbered from ``first``; their time is long ago."""
    answer = await use(
        world.db, "append_run_logs", run, p_first_seq=first, p_messages="\n".join(lines),
        p_marks=marks or "i" * len(lines), p_timestamps=[NOW] * len(lines),
    )  # fmt: skip
    assert answer["success"]


def process(url: str, *argv: str) -> asyncio.Task[subprocess.CompletedProcess[str]]:
    """The command as a process, which runs until the task is awaited."""
    return asyncio.create_task(asyncio.to_thread(ops_worker, *argv, OPS_WORKER_DATABASE_URL=url))


@pytest.fixture
def member(crowd: Crowd, db_url: str) -> str:
    """The URL of the viewer."""
    return as_role(db_url, "authenticated", crowd.users["viewer"])


@pytest.fixture
def stranger(crowd: Crowd, db_url: str) -> str:
    """The URL of a signed-in user of another project."""
    return as_role(db_url, "authenticated", crowd.users["stranger"])


# --- list -----------------------------------------------------------------------------------------------------------


async def test_an_operator_sees_all_runs_a_member_those_of_the_own_project_a_stranger_none(
    crowd: Crowd, db_url: str, member: str, stranger: str
) -> None:
    third = await new_project(crowd.world.db, "third")
    other = World(crowd.world.db, third, await new_workflow(crowd.world.db, third))
    await other.queue()
    for url, runs in (
        (db_url, ["third#1", "acme#1"]), (as_role(db_url, "service_role"), ["third#1", "acme#1"]),
        (member, ["acme#1"]), (stranger, []),
    ):  # fmt: skip
        assert [row["run"] for row in (await ops(url, "runs", "list", "--json")).json] == runs
    for role in ("anon", "ops_worker"):
        done = await ops(as_role(db_url, role), "runs", "list")
        assert (done.status, done.out) == (6, "")
        assert done.err.startswith("runs list: permission denied for ")
        assert "runs list needs the URL of service_role, of the schema's owner, or of a member" in done.err


async def test_list_filters_and_says_that_there_is_more(world: World, db_url: str) -> None:
    nightly = await new_workflow(world.db, world.project, "nightly")
    runs = [await world.queue(), await world.queue(workflow_id=nightly), await world.run_in("succeeded")]
    for argv, numbers in (
        ("", [3, 2, 1]), ("--status queued", [2, 1]), ("--workflow nightly", [2]), ("--workflow build", [3, 2, 1]),
        ("--workflow test", []), ("--project acme --limit 3", [3, 2, 1]),
    ):  # fmt: skip
        done = await ops(db_url, "runs", "list", "--json", *argv.split())
        assert (argv, [row["run_number"] for row in done.json]) == (argv, numbers)
    assert (await ops(db_url, "runs", "list", "--json")).json[0]["run_id"] == str(runs[2])
    for project, status in (("nowhere", 5), ("No Where", 2)):
        done = await ops(db_url, "runs", "list", "--project", project)
        assert (done.status, done.out, done.err.startswith("--project: ")) == (status, "", True)
    done = await ops(db_url, "runs", "list", "--limit", "2")
    assert done.err == "there is more; --limit 10 shows it\n"
    title, *rows = done.out.splitlines()
    assert title.split() == ["RUN", "WORKFLOW", "STATUS", "REASON", "QUEUED", "TOOK", "WORKER"]
    assert [row.split()[:3] for row in rows] == [
        ["acme#3", "build/build", "succeeded"], ["acme#2", "build/nightly", "queued"],
    ]  # fmt: skip


# --- show -----------------------------------------------------------------------------------------------------------


async def test_a_failed_run_shows_its_last_errors_first_then_what_to_do(crowd: Crowd, member: str) -> None:
    lines = (("info", "begin"), ("error", f"no {EVIL}"), ("info", "end"))
    run = await failed(crowd.world, f"exit code 1\nsecond {EVIL}", lines)
    retry = await call(crowd.world.db, "retry_run", run)
    done = await ops(member, "runs", "show", "acme#2")
    assert (done.status, done.err) == (0, "")
    *known, first, error, _, outcome, more, meaning, advice = done.out.splitlines()[:10]
    assert known == ["New or known", "  new: no \\u202ebad\\x9b<n>m", ""]
    assert (first, error[10:]) == ("Last errors", f" no {SHOWN}")
    assert (outcome, more) == ("acme#2 failed: exit code 1", f"  second {SHOWN}")
    assert meaning == "  exit_code: its program exited with an error."
    assert advice.startswith("  Read the error lines of its log.")
    for shown in (
        r"^Status +failed$", r"^Exit code +1$", rf"^Retried as +acme#{retry['run_number']} queued$",
        r"^Worker +host-a$", "claimed -> running$", "^The log: ops-worker runs logs acme#2$",
    ):  # fmt: skip
        assert re.search(shown, done.out, re.MULTILINE), shown
    document = (await ops(member, "runs", "show", str(run), "--json")).json
    assert [line["message"] for line in document["last_errors"]] == [f"no {EVIL}"]
    assert document["meaning"] == "its program exited with an error"
    assert [event["event_type"] for event in document["events"]].count("state_change") == 3
    assert document["retries"][0]["run_id"] == retry["run_id"]


async def test_failing_tests_come_before_the_errors_and_the_summary_after_the_facts(
    crowd: Crowd, db_url: str, member: str
) -> None:
    world, run = crowd.world, crowd.run
    tests = {"passed": 7, "failed": 3, "skipped": 1, "failing": ["t.one", f"t.two{EVIL}"]}
    lines = "\n".join([f"# {EVIL}", *(f"line {n}" for n in range(40))])
    await call(world.db, "record_report", run, WORKER, INSTANCE, p_tests=json.dumps(tests), p_summary=lines)
    await call(world.db, "append_run_log", run, "error", "broken")
    await call(world.db, "complete_workflow_run", run, 1, "exit code 1", WORKER, INSTANCE)
    done = await ops(member, "runs", "show", "acme#1")
    known = f"New or known\n  new: t.one\n  new: t.two{SHOWN}\n"
    assert done.out.startswith(f"{known}\nFailing tests\n  t.one\n  t.two{SHOWN}\n  and 1 more\n\nLast errors\n")
    assert re.search(r"^Tests +7 passed, 3 failed, 1 skipped$", done.out, re.MULTILINE)
    assert re.search(r"^Log +errors: 1$", done.out, re.MULTILINE)
    assert f"\n\nSummary\n  # {SHOWN}\n  line 0\n" in done.out
    assert "\n  line 28\n  and 11 more lines, in summary.md of its artifacts\n" in done.out
    document = (await ops(member, "runs", "show", "acme#1", "--json")).json
    assert (document["tests"], document["summary"], document["errors"]) == (tests, lines, 1)
    assert (await ops(db_url, "runs", "list", "--json")).json[0]["tests"] == tests


async def test_a_served_run_shows_its_url_as_long_as_it_is_served(world: World, db_url: str) -> None:
    run, url = await world.running(), "https://acme-main.preview.example"
    await call(world.db, "mark_ready", run, WORKER, INSTANCE, url)
    title, row = (await ops(db_url, "runs", "list")).out.splitlines()
    assert title.split()[-1] == "URL"
    assert (row.split()[3], row.split()[-1]) == ("ready", url)
    shown = (await ops(db_url, "runs", "show", str(run))).out
    assert re.search(rf"^URL +{re.escape(url)}$", shown, re.MULTILINE)
    assert re.search(r"^Ready +\d{4}-", shown, re.MULTILINE)
    await call(world.db, "append_run_log", run, "error", "early")
    await call(world.db, "append_run_log", run, "info", "last words")
    await call(world.db, "complete_workflow_run", run, None, "late", WORKER, INSTANCE, "not_ready")
    assert "URL" not in (await ops(db_url, "runs", "list")).out
    document = (await ops(db_url, "runs", "show", str(run), "--json")).json
    assert document["url"] == url
    assert [line["message"] for line in document["last_errors"]] == ["early", "last words"]


async def test_without_error_lines_the_warnings_are_shown_else_the_last_lines(world: World, db_url: str) -> None:
    for lines, shown in (
        ((("warn", "careful"), ("info", "end")), ["careful"]), ((("info", "a"), ("info", "b")), ["a", "b"]), ((), []),
    ):  # fmt: skip
        run = await failed(world, lines=lines)
        document = (await ops(db_url, "runs", "show", str(run), "--json")).json
        assert [line["message"] for line in document["last_errors"]] == shown


async def test_a_run_that_did_not_fail_has_no_errors_and_lists_its_artifacts(crowd: Crowd, member: str) -> None:
    done = await ops(member, "runs", "show", "acme/build")
    assert done.out.startswith("Run ")
    assert "\nArtifacts\n  0 bytes  file:///a\n" in done.out
    assert (await ops(member, "runs", "show", "acme/build", "--json")).json["advice"] is None


async def test_how_a_run_is_named(crowd: Crowd, db_url: str, stranger: str) -> None:
    db, project = crowd.world.db, crowd.world.project
    await db.execute(
        "insert into ops.workflows (project_id, workflow_type, name) values ($1, 'test', 'build')", project
    )
    await new_workflow(db, project, "idle")
    newest = str(await crowd.world.queue())
    for name, status, said in (
        (newest, 0, newest), ("acme#2", 0, newest), ("acme/build/build", 0, newest),
        ("acme/build", 2, "may mean several workflows; expected one of acme/build/build, acme/test/build"),
        ("acme/idle", 5, "RUN: acme/idle has no run yet"), ("acme/none", 5, "RUN: there is no workflow acme/none"),
        ("acme#3", 5, "RUN: there is no run acme#3, or this role may not see it"),
        (str(uuid.uuid4()), 5, "RUN: there is no run "), ("nonsense", 2, "RUN: expected a run id, PROJECT#NUMBER or"),
    ):  # fmt: skip
        done = await ops(db_url, "runs", "show", name, "--json")
        assert (name, done.status, said in (done.out or done.err)) == (name, status, True)
    for name in ("acme#1", "acme/build/build", newest):  # to a stranger they are not there
        done = await ops(stranger, "runs", "show", name)
        assert (name, done.status) == (name, 5)


# --- logs -----------------------------------------------------------------------------------------------------------


async def test_the_log_in_order_with_filters(crowd: Crowd, member: str, stranger: str) -> None:
    world, run = crowd.world, crowd.run
    await printed(world, run, 1, "one", "two", marks="iE")
    await call(world.db, "append_run_log", run, "warn", "late")

    async def messages(*argv: str) -> list[str]:
        done = await ops(member, "runs", "logs", "acme#1", "--json", *argv)
        return [json.loads(line)["message"] for line in done.out.splitlines()]

    assert await messages() == ["one", "two", "hello", "late"]
    assert await messages("--level", "warn") == ["two", "late"]
    assert await messages("--limit", "2") == ["hello", "late"]
    assert await messages("--since", "1h") == ["hello", "late"]
    assert await messages("--grep", "hello or two") == ["two", "hello"]
    done = await ops(member, "runs", "logs", "acme#1", "--level", "error")
    assert done.out == "2026-01-02T03:04:05.678Z error two\n"
    done = await ops(member, "runs", "logs", "acme#1", "--grep", "x", "--follow")
    assert (done.status, done.err) == (2, "--grep: does not go with --follow; expected one of the two\n")
    assert (await ops(stranger, "runs", "logs", "acme#1")).status == 5
    assert (await ops(stranger, "runs", "wait", "acme#1")).status == 5


async def test_a_long_log_is_read_in_batches_and_printed_safely(world: World, db_url: str) -> None:
    run = await world.running()
    await world.db.execute(
        """insert into ops.run_logs (run_id, seq, log_level, message)
           select $1, i, 'info', 'line ' || i || $2 from generate_series(1, 2500) as i""",
        run, EVIL,
    )  # fmt: skip
    done = await ops(db_url, "runs", "logs", str(run))
    assert [line.partition(" info  ")[2] for line in done.out.splitlines()] == [
        f"line {i}{SHOWN}" for i in range(1, 2501)
    ]


@pytest.mark.parametrize(
    ("status", "code", "exit_code", "says"),
    [("succeeded", 0, 0, "acme#1 succeeded\n"), ("failed", 1, 3, "acme#1 failed: broken\n")],
)
async def test_follow_prints_each_line_once_until_the_run_ends(
    world: World, db_url: str, status: str, code: int, exit_code: int, says: str
) -> None:
    run = await world.running()
    following = process(db_url, "runs", "logs", str(run), "-f", "--json")
    filtering = process(db_url, "runs", "logs", str(run), "-f", "--level", "warn")
    for n in range(1, 4):  # lines of both kinds come while it reads
        await printed(world, run, n, f"printed {n}")
        await call(world.db, "append_run_log", run, "warn", f"appended {n}")
        await asyncio.sleep(0.7)
    message = "broken" if exit_code else None
    await call(world.db, "complete_workflow_run", run, exit_code, message, WORKER, INSTANCE)
    done, filtered = await following, await filtering
    lines = [json.loads(line)["message"] for line in done.stdout.splitlines()]
    assert sorted(lines) == sorted(f"{kind} {n}" for n in (1, 2, 3) for kind in ("printed", "appended"))
    for kind in ("printed", "appended"):
        assert [line for line in lines if line.startswith(kind)] == [f"{kind} {n}" for n in (1, 2, 3)]
    assert (done.returncode, filtered.returncode, filtered.stderr) == (code, code, says)
    assert [line.split("warn  ")[1] for line in filtered.stdout.splitlines()] == [f"appended {n}" for n in (1, 2, 3)]
    assert await world.status(run) == status


async def test_follow_begins_at_a_time_or_with_the_last_lines(world: World, db_url: str) -> None:
    run = await world.running()
    await printed(world, run, 1, "old", "older")
    await call(world.db, "append_run_log", run, "info", "new")
    await call(world.db, "complete_workflow_run", run, 0, None, WORKER, INSTANCE)
    for argv, lines in (
        (("--since", "1h"), ["new"]),
        (("--limit", "2"), ["older", "new"]),
        ((), ["old", "older", "new"]),
    ):
        done = await ops(db_url, "runs", "logs", str(run), "-f", "--json", *argv)
        assert [json.loads(line)["message"] for line in done.out.splitlines()] == lines


async def test_follow_and_wait_resume_over_a_lost_connection(world: World, db_url: str, cluster: Cluster) -> None:
    run = await world.running()
    relay = Relay(f"{cluster.directory}/.s.PGSQL.{cluster.port}")
    async with relay.running():
        database = await world.db.fetchval("select current_database()")
        url = f"postgresql://postgres@127.0.0.1:{relay.port}/{database}?sslmode=disable"
        following, waiting = (
            process(url, "runs", "logs", str(run), "-f", "--json"),
            process(url, "runs", "wait", "acme#1"),
        )
        polling = (
            "select count(*) = 2 from pg_stat_activity where pid <> pg_backend_pid()"
            " and datname = current_database() and query ~ 'from ops.run'"
        )
        await until(lambda: world.db.fetchval(polling))
        for n in range(1, 5):
            await printed(world, run, n, f"line {n}")
            passed = relay.passed
            await until(lambda passed=passed: relay.passed > passed + 100)  # type: ignore[misc]
            relay.down = True
            relay.cut()
            await asyncio.sleep(0.2)
            relay.down = False
        await call(world.db, "complete_workflow_run", run, 0, None, WORKER, INSTANCE)
        done, waited = await following, await waiting
    assert [json.loads(line)["message"] for line in done.stdout.splitlines()] == [f"line {n}" for n in range(1, 5)], (
        done
    )
    assert (done.returncode, waited.returncode, waited.stdout) == (0, 0, "acme#1 succeeded\n")
    assert done.stderr == "the database cannot be reached; trying again\n"


async def test_follow_leaves_a_half_open_connection(
    world: World, db_url: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_plane, "ANSWER_SECONDS", 1.0)
    run = await world.running()
    relay = Relay(f"{cluster.directory}/.s.PGSQL.{cluster.port}")
    async with relay.running():
        database = await world.db.fetchval("select current_database()")
        url = f"postgresql://postgres@127.0.0.1:{relay.port}/{database}?sslmode=disable"
        following = asyncio.create_task(ops(url, "runs", "logs", str(run), "-f", "--json"))
        await until(lambda: relay.passed > 2000)
        relay.freeze()
        await printed(world, run, 1, "line 1")
        await call(world.db, "complete_workflow_run", run, 0, None, WORKER, INSTANCE)
        done = await following
    assert (done.status, json.loads(done.out)["message"]) == (0, "line 1")


# --- wait -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "code", "says"),
    [("succeeded", 0, "acme#1 succeeded"), ("failed", 1, "acme#1 failed"), ("canceled", 3, "acme#1 canceled")],
)
async def test_wait_exits_by_the_outcome(world: World, db_url: str, state: str, code: int, says: str) -> None:
    run = await world.run_in(state)
    done = await ops(db_url, "runs", "wait", "acme#1")
    assert (done.status, done.out.partition(":")[0].strip(), done.err) == (code, says, "")
    done = await ops(db_url, "runs", "wait", "acme#1", "--json")
    assert (done.status, json.loads(done.out)["run_id"]) == (code, str(run))


async def test_wait_ends_at_its_time_limit(world: World, db_url: str) -> None:
    await world.queue()
    done = await ops(db_url, "runs", "wait", "acme#1", "--timeout", "0.5")
    assert (done.status, done.out) == (4, "")
    assert done.err == "--timeout: acme#1 has not ended within 0.5 s; it continues\n"


async def test_without_a_database_or_its_schema_the_error_is_one_line(empty_db_url: str, cluster: Cluster) -> None:
    done = await ops(empty_db_url, "runs", "list")
    assert done.status == 6
    assert done.err.endswith("Run `ops-worker db migrate` on this database first\n")
    done = await ops("postgresql://u:hunter22@127.0.0.1:9/x", "runs", "list")
    assert (done.status, "hunter22" in done.err) == (7, False)
    done = await ops(cluster.url("nothing_here"), "runs", "list")
    assert (done.status, "the server refuses the login" in done.err) == (1, True)
