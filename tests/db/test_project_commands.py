"""``projects sync``, ``hooks`` and ``members add`` and ``remove``, against a real database."""

from __future__ import annotations

import io
import uuid
from pathlib import Path

import pytest

from tests.db.crowd import ADMINS, DEVELOPERS, ROLES, Crowd
from tests.db.persons import Said, as_role, ops
from tests.db.world import World
from tests.support.docker import ROOT
from tests.support.markdown import Document

FILE = """
slug = "shop"
name = "Shop"
odoo_version = "19.0"
config.push = {repository = "acme/shop", branches = [{match = "main", run = ["unit"]}]}
limits.max_active_runs = 2

[[workflows]]
workflow_type = "test"
name = "unit"
config = {tool = "shell", version = "1", command = ["true"], then = ["live"]}

[[workflows]]
workflow_type = "deploy"
name = "live"
config = {tool = "shell", version = "1", approval = true}
"""
COLUMNS = ("anon", "service_role")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "project.toml"
    write(path, FILE)
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text)


def cells(said: Said) -> list[str]:
    """The rows of a table, with one space between two cells."""
    assert said.status == 0, said
    return [" ".join(line.split()) for line in said.out.splitlines()[1:]]


def url_of(crowd: Crowd, db_url: str, who: str) -> str:
    return as_role(db_url, who) if who in COLUMNS else as_role(db_url, "authenticated", crowd.users[who])


# projects sync ----------------------------------------------------------------------------------------------


async def test_a_file_becomes_a_project(world: World, db_url: str, file: Path) -> None:
    sync = ("projects", "sync", str(file))
    missing = "the tool shell 1 is not registered yet; runs need it: ops-worker tools sync FILE\n"
    dry = await ops(db_url, *sync, "--dry-run")
    assert (cells(dry), dry.err) == (
        ["added shop", "added test/unit", "added deploy/live"], f"{missing}a dry run: nothing was changed\n",
    )  # fmt: skip
    assert await world.db.fetchval("select count(*) from ops.projects") == 1
    done = await ops(db_url, *sync)
    assert (done.out, done.err) == (dry.out, missing)
    await world.db.execute("insert into ops.tools (tool_name, version, docker_image) values ('shell', '1', 'x')")

    first = FILE.partition('[[workflows]]\nworkflow_type = "deploy"')[0]
    write(file, first.replace('["true"], then = ["live"]', '["false"]'))
    assert cells(await ops(db_url, *sync)) == [
        "unchanged shop", "changed test/unit config.command, config.then", "disabled deploy/live enabled",
    ]  # fmt: skip
    answer = (await ops(db_url, *sync, "--json")).json
    assert (answer["slug"], answer["change"], answer["dry_run"], [row["change"] for row in answer["workflows"]]) == (
        "shop", "unchanged", False, ["unchanged"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "other", "status", "error"),
    [
        ("command =", "comand =", 2, "FILE {}: workflows[0].config, comand: unknown key; did you mean command?"),
        ("[[", "[", 2, "FILE {}: expected TOML: "),
        ('slug = "shop"', "slug = 2026-01-01", 2,
         "FILE {}: 'slug': expected texts, numbers, true or false, lists and tables only"),
        ('slug = "shop"', "slug = 1", 6, "projects sync: project.slug: expected a text of 1 to 100 characters"),
        ('"unit"]}]', '"nuit"]}]', 6,
         'projects sync: project.config.push.branches.0.run: the project has no workflow "nuit"'),
    ],
)  # fmt: skip
async def test_a_mistake_in_the_file_is_named(
    world: World, db_url: str, file: Path, text: str, other: str, status: int, error: str
) -> None:
    assert text in FILE
    write(file, FILE.replace(text, other))
    done = await ops(db_url, "projects", "sync", str(file))
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith(error.format(file))
    assert len(done.err.splitlines()) == 1
    assert await world.db.fetchval("select count(*) from ops.projects") == 1


@pytest.mark.parametrize("who", [*ROLES, "stranger", *COLUMNS])
async def test_who_may_sync_a_project(crowd: Crowd, db_url: str, file: Path, who: str) -> None:
    """Workflows, settings, limits, and a new project."""
    acme = FILE.replace('"shop"', '"acme"', 1).replace("limits", "config.limits")
    write(file, acme)
    assert (await ops(db_url, "projects", "sync", str(file))).status == 0
    done = []
    for text in (
        acme.replace('["true"]', '["false"]'), acme.replace('"Shop"', '"Other"'),
        acme.replace("config.limits", "limits"), FILE,
    ):  # fmt: skip
        write(file, text)
        done.append((await ops(url_of(crowd, db_url, who), "projects", "sync", str(file), "--dry-run")).status)
    workflows, settings = who in DEVELOPERS, who == "owner"
    every = who == "service_role"
    may = [workflows or every, settings or every, every, every]
    assert [status == 0 for status in done] == may
    assert {status for status in done if status} <= {5, 6}


def documented(block: str) -> str:
    return next(text for text in Document(ROOT / "docs" / "configuration.md").blocks("toml") if block in text)


@pytest.mark.parametrize("where", ["deploy/hello", "deploy/tools/odoo", "docs"])
async def test_the_files_that_we_show_are_right(world: World, db_url: str, file: Path, where: str) -> None:
    text = documented('slug = "shop"') if where == "docs" else (ROOT / where / "project.toml").read_text()
    write(file, text.replace('slug = "acme"', 'slug = "odoo"'))
    assert (await ops(db_url, "tools", "sync", f"{ROOT}/deploy/hello/tools.toml")).status == 0
    done = await ops(db_url, "projects", "sync", str(file))
    assert {row.split()[0] for row in cells(done)} == {"added"}
    assert "shell" not in done.err


# hooks ------------------------------------------------------------------------------------------------------


async def test_a_hook_is_set_shown_once_and_removed(world: World, db_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await ops(db_url, "hooks", "set", "acme", "--public-url", "https://Console.example")
    secret = await world.db.fetchval("select secret from ops_private.webhooks where project_id = $1", world.project)
    assert len(secret) > 40
    for text in (f"address       https://console.example/hooks/{world.project}\n", f"secret        {secret}\n"):
        assert text in made.out
    assert [line.split("  ")[0] for line in made.out.splitlines()[5:]] == ["GitHub", "GitLab", "Gitea, Forgejo"]
    assert made.err == "store the secret at the forge now: no command shows it again\n"

    monkeypatch.setattr("sys.stdin", io.StringIO("one of my own, long\n"))
    given = (await ops(db_url, "hooks", "set", "acme", "-", "--json")).json
    assert given == {
        "project": "acme", "project_id": str(world.project), "set": True, "secret": None,
        "path": f"/hooks/{world.project}", "url": None,
    }  # fmt: skip
    secret = await world.db.fetchval("select secret from ops_private.webhooks where project_id = $1", world.project)
    assert secret == "one of my own, long"  # noqa: S105 - of this test
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    short = await ops(db_url, "hooks", "set", "acme", "-")
    assert short == Said(6, "", "hooks set: the secret must have 16 to 1000 bytes\n")

    assert await ops(db_url, "hooks", "remove", "acme") == Said(0, "acme accepts no webhook any more\n", "")
    assert await world.db.fetchval("select count(*) from ops_private.webhooks") == 0


@pytest.mark.parametrize("who", [*ROLES, "stranger", *COLUMNS])
async def test_who_may_set_a_hook(crowd: Crowd, db_url: str, who: str) -> None:
    for command in ("set", "remove"):
        done = await ops(url_of(crowd, db_url, who), "hooks", command, "acme")
        expected = {"owner": 0, "service_role": 0, "stranger": 5}.get(who, 6)
        assert (done.status, bool(done.out)) == (expected, expected == 0)


# members ----------------------------------------------------------------------------------------------------


async def test_members_are_added_changed_and_removed(crowd: Crowd, db_url: str) -> None:
    user = str(uuid.uuid4())
    for words, line in (
        ((user, "viewer"), f"{user} is viewer of acme; before: no member\n"),
        ((user, "admin"), f"{user} is admin of acme; before: viewer\n"),
        ((user, "admin"), f"{user} is admin of acme, as before\n"),
    ):
        assert await ops(db_url, "members", "add", "acme", *words) == Said(0, line, "")
    gone = (await ops(db_url, "members", "remove", "acme", user, "--json")).json
    assert gone == {"project": "acme", "user_id": user, "role": None, "previous_role": "admin", "changed": True}
    again = await ops(db_url, "members", "remove", "acme", user)
    assert again == Said(0, f"{user} is no member of acme, as before\n", "")
    last = await ops(db_url, "members", "remove", "acme", str(crowd.users["owner"]))
    assert last == Said(6, "", "members remove: a project keeps at least one owner\n")


async def test_an_operator_names_a_user_by_email(crowd: Crowd, db_url: str) -> None:
    words = ("members", "add", "acme", "One@b.example", "viewer")
    unknown = "members add: this database knows no email of a user; name the user by UUID\n"
    assert await ops(db_url, *words) == Said(5, "", unknown)
    await crowd.world.db.execute("create schema auth; create table auth.users (id uuid, email text)")
    await crowd.world.db.execute("insert into auth.users values ($1, 'one@b.example')", crowd.users["stranger"])
    assert (await ops(db_url, *words)).out == f"{crowd.users['stranger']} is viewer of acme; before: no member\n"
    denied = await ops(url_of(crowd, db_url, "owner"), *words)
    assert (denied.status, denied.out) == (6, "")
    assert "the id of the user" in denied.err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("acme", "x", "viewer"), "ID: expected the id of a user (a UUID), or the email of one"),
        (("acme", str(uuid.UUID(int=1)), "boss"), "ROLE: expected one of viewer, developer, admin, owner"),
        (("Acme", str(uuid.UUID(int=1)), "viewer"), "PROJECT: expected the slug of a project"),
    ],
)
async def test_a_wrong_word_is_named(world: World, db_url: str, words: tuple[str, ...], error: str) -> None:
    done = await ops(db_url, "members", "add", *words)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(error)


@pytest.mark.parametrize("who", [*ROLES, "stranger", *COLUMNS])
async def test_who_may_manage_members(crowd: Crowd, db_url: str, who: str) -> None:
    url, viewer = url_of(crowd, db_url, who), str(crowd.users["viewer"])
    for words, who_may in (
        (("add", "acme", str(uuid.uuid4()), "admin"), ADMINS), (("add", "acme", str(uuid.uuid4()), "owner"), {"owner"}),
        (("remove", "acme", viewer), ADMINS | {"viewer"}),
    ):  # fmt: skip
        expected = 0 if who in {*who_may, "service_role"} else 5 if who == "stranger" else 6
        assert (words, (await ops(url, "members", *words)).status) == (words, expected)
