"""Who is a member of a project, by ``ops.set_member`` and ``ops.remove_member``."""

from __future__ import annotations

import uuid

import asyncpg
import pytest

from tests.db.crowd import Crowd
from tests.db.world import World, blocked, call

GIVEN = "select role, given_by from ops.project_memberships where project_id = $1 and user_id = $2"


async def test_a_member_is_added_changed_and_removed(crowd: Crowd) -> None:
    owner, project, user = await crowd.sign_in("owner"), crowd.world.project, crowd.users["stranger"]
    for role, before in (("viewer", None), ("owner", "viewer"), ("owner", "owner")):
        assert await call(owner, "set_member", project, user, role) == {
            "success": True, "role": role, "previous_role": before, "changed": role != before,
        }  # fmt: skip
        assert tuple(await crowd.world.db.fetchrow(GIVEN, project, user) or ()) == (role, crowd.users["owner"])
    for before in ("owner", None):
        assert await call(owner, "remove_member", project, user) == {
            "success": True, "previous_role": before, "changed": before is not None,
        }  # fmt: skip
    assert await crowd.world.db.fetchrow(GIVEN, project, user) is None


async def test_what_is_refused_names_its_reason(crowd: Crowd) -> None:
    project, users = crowd.world.project, crowd.users
    admin, owner, stranger = [await crowd.sign_in(who) for who in ("admin", "owner", "stranger")]
    last = {"success": False, "code": "last_owner", "error": "a project keeps at least one owner"}
    assert await call(owner, "remove_member", project, users["owner"]) == last
    assert await call(owner, "set_member", project, users["owner"], "admin") == last
    for caller, user, role, error in (
        (admin, users["viewer"], "owner", "an admin may not make a user an owner"),
        (admin, users["owner"], "viewer", "an admin may not change an owner"),
        (stranger, users["viewer"], "viewer", "there is no such project"),
        (owner, users["viewer"], "boss", "the role must be viewer, developer, admin or owner"),
        (owner, users["viewer"], None, "the role must be viewer, developer, admin or owner"),
        (owner, None, "viewer", "the user_id must not be null"),
    ):
        answer = await call(caller, "set_member", project, user, role)
        assert answer["error"].replace("a admin", "an admin") == error


async def test_a_user_must_exist_where_the_database_knows_users(crowd: Crowd) -> None:
    await know_users(crowd.world, "One@b.example")
    await crowd.world.db.execute(
        "alter table ops.project_memberships add foreign key (user_id) references auth.users not valid"
    )
    answer = await call(crowd.world.db, "set_member", crowd.world.project, uuid.uuid4(), "viewer")
    assert (answer["code"], answer["error"]) == ("not_found", "there is no such user")


async def test_an_operator_finds_a_user_by_email(world: World) -> None:
    unknown = "this database knows no email of a user; name the user by UUID"
    assert (await call(world.db, "find_user", "one@b.example"))["error"] == unknown
    one, *_ = await know_users(world, "One@b.example", "twice@b.example", "twice@b.example")
    assert await call(world.db, "find_user", "one@B.example") == {"success": True, "user_id": str(one)}
    for email, code in (("two@b.example", "not_found"), ("%", "not_found"), (None, "not_found"),
                        ("twice@b.example", "bad_argument")):  # fmt: skip
        assert (await call(world.db, "find_user", email))["code"] == code


async def know_users(world: World, *emails: str) -> list[uuid.UUID]:
    """A table ``auth.users`` as Supabase has; returns the ids of its users."""
    await world.db.execute(
        "create schema auth; create table auth.users (id uuid primary key default gen_random_uuid(), email text)"
    )
    query = "insert into auth.users (email) select unnest($1::text[]) returning id"
    return [row["id"] for row in await world.db.fetch(query, emails)]


async def test_two_owners_who_leave_at_once_leave_one(crowd: Crowd) -> None:
    project, users = crowd.world.project, crowd.users
    await call(crowd.world.db, "set_member", project, users["admin"], "owner")
    one, two = await crowd.sign_in("owner"), await crowd.sign_in("admin")
    async with one.transaction():
        assert (await call(one, "remove_member", project, users["owner"]))["changed"]
        waiting = await blocked(crowd.world.db, two, call(two, "remove_member", project, users["admin"]))
    assert (await waiting)["code"] == "last_owner"


async def test_an_admin_who_waited_finds_an_owner(crowd: Crowd) -> None:
    """The user becomes an owner, also by a direct update, while an admin waits to change or remove a viewer."""
    db, project, viewer = crowd.world.db, crowd.world.project, crowd.users["viewer"]
    admin = await crowd.sign_in("admin")
    for function, role in (("set_member", ("developer",)), ("remove_member", ())):
        await db.execute("update ops.project_memberships set role = 'viewer' where user_id = $1", viewer)
        async with db.transaction():
            await db.execute("update ops.project_memberships set role = 'owner' where user_id = $1", viewer)
            waiting = await blocked(await crowd.connect(), admin, call(admin, function, project, viewer, *role))
        assert (await waiting)["code"] == "not_allowed"


async def test_two_who_add_one_user_take_turns(crowd: Crowd) -> None:
    db, project, user = crowd.world.db, crowd.world.project, crowd.users["stranger"]
    admin = await crowd.sign_in("admin")
    async with db.transaction():
        await call(db, "set_member", project, user, "viewer")
        waiting = await blocked(await crowd.connect(), admin, call(admin, "set_member", project, user, "developer"))
    assert (await waiting)["previous_role"] == "viewer"


async def test_only_operators_find_users_whatever_is_granted(crowd: Crowd) -> None:
    await know_users(crowd.world, "one@b.example")
    await crowd.world.db.execute("grant execute on function ops.find_user, ops_private.find_user to authenticated")
    owner = await crowd.sign_in("owner")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only service_role finds users"):
        await call(owner, "find_user", "one@b.example")
