"""A role for each build host: how it is created, and that it can change only runs that it claimed."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from tests.conftest import Connect
from tests.db.world import ENGINE, INSTANCE, LIFE, WORKER, World, call, everything, shift_clock
from tests.support.command import complaints, ops_worker
from tests.support.postgres import OUTERMOST, Cluster
from tests.support.supabase import OWNER, supabase_cluster, supabase_database
from worker.database import migrations, roles

PASSWORD = "correct-horse-battery"  # noqa: S105 - of roles that live as long as a test
NAME = "ops_worker_test_host"


def create_worker(url: str, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return ops_worker("db", "create-worker", *words, stdin=stdin, OPS_WORKER_DATABASE_URL=url)


# Made -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=OUTERMOST)
def supabase(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A server with Supabase's roles that asks for passwords; CREATEROLE has another meaning from 16 on."""
    with supabase_cluster(request.param, listen="127.0.0.1") as cluster:
        yield cluster


async def test_the_line_that_is_printed_logs_in_and_works(supabase: Cluster, connect: Connect) -> None:
    """As Supabase's owner, who is no superuser; over TCP, where the server asks for the password."""
    with supabase_database(supabase) as name:
        supabase.execute(f"alter role {OWNER} password '{PASSWORD}'")
        url = supabase.url(name, user=OWNER, host="127.0.0.1", password=PASSWORD)
        assert ops_worker("db", "migrate", OPS_WORKER_DATABASE_URL=url).returncode == 0
        done = create_worker(url, NAME)
        assert (done.returncode, done.stderr) == (0, "")
        (line,) = done.stdout.splitlines()
        variable, _, login = line.partition("=")
        assert variable == "OPS_WORKER_DATABASE_URL"

        host = await connect(login)
        assert await host.fetchval("select current_user") == NAME
        assert (await call(host, "claim_next_run", WORKER))["message"] == "no queued runs"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await host.fetch("select from ops.runs")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await host.execute("set role service_role")

        again = create_worker(url, NAME).stdout.strip().partition("=")[2]
        assert again != login
        with pytest.raises(asyncpg.InvalidPasswordError):
            await connect(login)
        await connect(again)
        supabase.execute(f'drop role "{NAME}"')  # nothing that it did keeps it


async def test_the_password_may_come_by_standard_input(tcp_cluster: Cluster, connect: Connect) -> None:
    with tcp_cluster.database(tcp_cluster.template()) as name:
        url = tcp_cluster.url(name, host="127.0.0.1")
        done = create_worker(url, NAME, "-", stdin=f"{PASSWORD}\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"role {NAME} is created\n", "")
        await connect(tcp_cluster.url(name, user=NAME, host="127.0.0.1", password=PASSWORD))
        done = create_worker(url, NAME, "-", stdin=PASSWORD[::-1])
        assert done.stdout == f"role {NAME} has a new password\n"
        await connect(tcp_cluster.url(name, user=NAME, host="127.0.0.1", password=PASSWORD[::-1]))


def test_wrong_arguments_of_create_worker_are_one_line(db_url: str, empty_db_url: str) -> None:
    for words, stdin, complaint in (
        ((), "", "too few words"),
        ((NAME, "-", "x"), "", "too many words"),
        ((NAME, PASSWORD), "", "standard input"),
        ((NAME, "-"), "", "at least 12"),
        (("Build Host",), "", "a-z"),
    ):
        done = create_worker(db_url, *words, stdin=stdin)
        assert done.returncode in (1, 2)
        (line,) = complaints(done)
        assert complaint in line
        assert PASSWORD not in line
    done = create_worker(empty_db_url, NAME)
    assert (done.returncode, "ops-worker db migrate" in done.stderr) == (1, True)


UNFIT = [
    (NAME, "short", "at least 12"),
    (NAME, "pässwörd-that-is-long", "printable ASCII"),
    (NAME, "line-one\nline-two", "printable ASCII"),
    ("9host", PASSWORD, "a letter first"),
    ("x" * 64, PASSWORD, "up to 63"),
    ("pg_worker", PASSWORD, "reserved"),
    ("postgres", PASSWORD, "not just a worker"),
    ("ops_worker", PASSWORD, "not just a worker"),
    ("service_role", PASSWORD, "not just a worker"),
    (f"{NAME}_that_got_more", PASSWORD, "not just a worker"),
]


async def test_an_unfit_name_or_password_makes_no_role(db: asyncpg.Connection) -> None:
    await roles.create_worker(db, UNFIT[-1][0], PASSWORD)
    await db.execute(f"grant service_role to {UNFIT[-1][0]}")
    before = await db.fetch("select * from pg_authid")
    for name, password, complaint in UNFIT:
        with pytest.raises(roles.RoleError, match=complaint):
            await roles.create_worker(db, name, password)
    assert await db.fetch("select * from pg_authid") == before


async def test_a_worker_makes_no_workers(db: asyncpg.Connection, connect: Connect) -> None:
    await roles.create_worker(db, NAME, PASSWORD)
    host = await connect(user=NAME)
    with pytest.raises(roles.RoleError, match="permission denied for schema ops_private"):
        await roles.create_worker(host, f"{NAME}_2", PASSWORD)


async def test_an_owner_without_createrole_is_refused_and_createrole_is_named(
    cluster: Cluster, connect: Connect
) -> None:
    await asyncio.to_thread(cluster.template)  # the roles are there
    with cluster.database() as name:
        cluster.execute("create role plain login")
        cluster.execute(f"alter database {name} owner to plain")
        db = await connect(cluster.url(name, user="plain"))
        await migrations.migrate(db)
        with pytest.raises(roles.RoleError, match=r"permission denied.*CREATEROLE"):
            await roles.create_worker(db, NAME, PASSWORD)


async def test_the_server_never_sees_the_password(db: asyncpg.Connection) -> None:
    await roles.create_worker(db, NAME, PASSWORD)
    stored = await db.fetchval("select rolpassword from pg_authid where rolname = $1", NAME)
    assert stored.startswith("SCRAM-SHA-256$4096:")
    assert "verifier" in await db.fetchval("select ops_private.create_worker($1, $2)", NAME, PASSWORD)


async def test_the_role_of_a_console_has_no_right_until_it_switches(db: asyncpg.Connection, connect: Connect) -> None:
    assert [await roles.create_console(db, f"{NAME}_console", PASSWORD) for _ in "12"] == [True, False]
    login = await connect(user=f"{NAME}_console")
    for statement in ("select * from ops.projects", "select ops.receive_push(null, '', '{}')", "set role service_role"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await login.execute(statement)
    for role in ("authenticated", "ops_webhook"):
        await login.execute(f"set role {role}")
    for create, name in ((roles.create_worker, f"{NAME}_console"), (roles.create_console, "host_of_tests")):
        await roles.create_worker(db, "host_of_tests", PASSWORD)
        with pytest.raises(roles.RoleError, match="not just a"):
            await create(db, name, PASSWORD)


# Kept apart -------------------------------------------------------------------------------------------------


Hosts = tuple[asyncpg.Connection, asyncpg.Connection]
MASKS: list[dict[str, Any]] = [
    {"p_worker_id": WORKER, "p_instance_id": INSTANCE},  # what the other one writes
    {"p_worker_id": WORKER, "p_instance_id": None},
    {"p_worker_id": None, "p_instance_id": None},
    {"p_worker_id": "host-two", "p_instance_id": uuid.uuid4()},
]


@pytest.mark.parametrize("function", [*LIFE, "adopt_run"])
async def test_a_run_belongs_to_the_host_that_claimed_it(world: World, hosts: Hosts, function: str) -> None:
    one, two = hosts
    run = await world.queue()
    claim = {"p_worker_id": WORKER, "p_instance_id": INSTANCE, "p_engine_id": ENGINE}
    assert (await call(one, "claim_next_run", **claim))["run_id"] == str(run)
    if function not in ("release_run", "start_workflow_run"):
        assert (await call(one, "start_workflow_run", run, WORKER, INSTANCE))["success"]
    named = LIFE.get(function, {"p_engine_id": ENGINE})
    if function == "adopt_run":
        await shift_clock(world.db, 10_000)  # long after the lease ran out
    before = await everything(world.db)
    for mask in MASKS:
        answer = await call(two, function, p_run_id=run, **(named | mask))
        assert answer["code"] in (("not_owner", "bad_argument") if function == "adopt_run" else ("not_owner",))
        assert await everything(world.db) == before
    assert (await call(one, function, p_run_id=run, **(named | MASKS[0]))).get("code") is None


async def test_a_host_cannot_renew_take_over_or_unregister_the_worker_of_another(world: World, hosts: Hosts) -> None:
    one, two = hosts
    run = await world.queue()
    assert (await call(one, "register_worker", WORKER, INSTANCE, "host", ENGINE))["success"]
    await call(one, "claim_next_run", WORKER, INSTANCE)
    expires_at = await world.expires_at(run)

    beat = await call(two, "heartbeat", WORKER, INSTANCE, 3600)
    assert (beat["registered"], beat["runs"]) == (False, [])
    assert await world.expires_at(run) == expires_at
    for instance in (INSTANCE, uuid.uuid4()):
        answer = await call(two, "register_worker", WORKER, instance, "host", ENGINE, p_takeover=True)
        assert answer["code"] == "worker_id_taken"
    await call(two, "unregister_worker", WORKER, INSTANCE)
    assert await world.db.fetchval("select not handed_over from ops_private.leases"), "not handed over"
    assert (await call(one, "heartbeat", WORKER, INSTANCE))["registered"]
    assert (await call(two, "reap"))["requeued"] == []
    assert await world.status(run) == "claimed"


async def test_a_worker_id_is_reserved_for_its_role_after_unregistering(world: World, hosts: Hosts) -> None:
    one, two = hosts
    await world.queue()
    await call(one, "register_worker", WORKER, INSTANCE)
    await call(one, "unregister_worker", WORKER, INSTANCE)
    for function, instance in (("register_worker", uuid.uuid4()), ("claim_next_run", uuid.uuid4()),
                               ("claim_next_run", None)):  # fmt: skip
        answer = await call(two, function, WORKER, instance)
        assert answer["code"] == "worker_id_taken"
        assert "host_one" in answer.get("error", answer.get("message", ""))
    assert (await call(world.db, "register_worker", WORKER, uuid.uuid4()))["success"], "service_role acts for any"
    await shift_clock(world.db, 61)
    assert (await call(one, "register_worker", WORKER, INSTANCE))["success"], "and it is still the first one's"
    await shift_clock(world.db, 122)
    await one.close()
    await world.db.execute("drop role host_one")
    assert (await call(two, "register_worker", WORKER, uuid.uuid4()))["success"]


async def test_a_host_cannot_spoil_a_run_that_it_gives_back(world: World, hosts: Hosts) -> None:
    one, two = hosts
    run = await world.queue()
    await call(two, "claim_next_run", "host-two", INSTANCE)
    assert (await call(two, "record_container", run, "host-two", INSTANCE, "c"))["code"] == "not_running"
    assert (await call(two, "release_run", run, "host-two", INSTANCE))["success"]
    claim = await call(one, "claim_next_run", WORKER, INSTANCE)
    assert (claim["run_id"], claim["container_id"]) == (str(run), None)
    await call(one, "start_workflow_run", run, WORKER, INSTANCE)
    assert (await call(one, "record_container", run, WORKER, INSTANCE, "c"))["success"]


@pytest.mark.parametrize("name", ["host_one", WORKER], ids=["by its role", "by its worker id"])
async def test_a_host_that_is_shut_out_loses_its_runs_and_ids(
    world: World, hosts: Hosts, connect: Connect, name: str
) -> None:
    one, two = hosts
    await world.db.execute(
        'update ops.workflows set config = \'{"retry": {"max_attempts": 2, "on": ["worker_lost"]}}\''
    )
    await call(one, "register_worker", WORKER, INSTANCE)
    running, claimed = [await world.queue() for _ in range(2)]
    for _ in range(2):
        await call(one, "claim_next_run", WORKER, INSTANCE)
    await call(one, "start_workflow_run", running, WORKER, INSTANCE)

    service = await connect(role="service_role")
    assert await call(service, "shut_out_worker", name) == {
        "success": True, "requeued": [str(claimed)], "failed": [str(running)], "freed": [WORKER],
    }  # fmt: skip
    assert (await world.row(running))["reason"] == "worker_lost"
    assert await world.db.fetchval("select count(*) from ops.runs where retry_of = $1", running) == 1
    assert await world.db.fetchval("select claim_count from ops.runs where id = $1", claimed) == 0
    assert (await call(one, "heartbeat", WORKER, INSTANCE))["runs"] == []
    assert (await call(two, "register_worker", WORKER, uuid.uuid4()))["success"]


async def test_service_role_acts_for_any_worker_and_adopts_its_runs(
    world: World, hosts: Hosts, connect: Connect
) -> None:
    run, other = await world.queue(), await world.queue()
    for _ in range(2):
        await call(hosts[0], "claim_next_run", WORKER, INSTANCE, p_engine_id=ENGINE)
    service = await connect(role="service_role")
    assert (await call(service, "start_workflow_run", run, WORKER, INSTANCE))["success"]
    assert (await call(service, "append_run_log", run, "info", "hello"))["success"]
    assert (await call(service, "complete_workflow_run", run, 0))["status"] == "succeeded"
    assert (await call(service, "adopt_run", other, WORKER, uuid.uuid4(), ENGINE))["run_id"] == str(other)
    assert (await call(hosts[0], "start_workflow_run", other, WORKER))["code"] == "not_owner"


async def test_a_dropped_role_is_gone_and_its_runs_go_back(world: World, hosts: Hosts) -> None:
    run = await world.queue()
    await call(hosts[0], "claim_next_run", WORKER, INSTANCE)
    await hosts[0].close()
    await world.db.execute("drop role host_one")
    await shift_clock(world.db, 10_000)
    assert (await call(hosts[1], "reap"))["requeued"] == [str(run)]
    assert (await call(hosts[1], "claim_next_run", "host-two"))["run_id"] == str(run)
