"""What a user does beside the life of a run: known errors, the secret of a webhook, draining a worker."""

from __future__ import annotations

import pytest

from tests.console.browser import AS_BROWSER, FROM_HERE, SIGNS_IN, bearer, form_key, served
from tests.db.crowd import DEVELOPERS, ROLES, Crowd
from tests.db.forges import WORDS
from tests.db.world import INSTANCE, WORKER, call


@pytest.mark.parametrize("who", [*ROLES, "stranger"])
async def test_who_marks_an_error_as_known_and_forgets_it(crowd: Crowd, console_url: str, who: str) -> None:
    db, run = crowd.world.db, await crowd.world.run_in("running")
    tests = '{"passed": 1, "failed": 1, "skipped": 0, "failing": ["t"]}'
    await db.execute("update ops.runs set status = 'failed', tests = $2 where id = $1", run, tests)
    path = f"/runs/acme/{(await crowd.world.row(run))['run_number']}"
    mark = await db.fetchval("select fingerprint from ops.run_fingerprints($1)", run)
    headers, may = AS_BROWSER | bearer(crowd.users[who]), who in DEVELOPERS
    async with served(console_url, *SIGNS_IN) as client:

        async def act(action: str, **fields: str) -> int:
            return (await client.post(f"{path}/{action}", data=fields, headers=headers)).status_code

        assert (f"{path}/known" in (await client.get(path, headers=headers)).text) == may
        assert await act("known", fingerprint=mark, reason="a flaky <test>") == (
            303 if may else 404 if who == "stranger" else 403
        )
        if may:
            assert await act("known") == 400  # not all errors at once
            page = (await client.get(path, headers=headers)).text
            assert ("noted: a flaky &lt;test&gt;" in page, f"{path}/forget" in page) == (True, True)
            assert page.count("noted: a flaky") == 1  # not in the summary again
            assert await act("forget", fingerprint=mark) == 303
    assert await db.fetchval("select count(*) from ops_private.known_errors") == 0


@pytest.mark.parametrize("who", [*ROLES, "stranger"])
async def test_an_owner_sets_the_secret_of_the_webhook(crowd: Crowd, console_url: str, who: str) -> None:
    headers = AS_BROWSER | bearer(crowd.users[who])
    async with served(console_url, *SIGNS_IN) as client:
        page = (await client.get("/projects/acme", headers=headers)).text
        assert (f"/hooks/{crowd.world.project}" in page) == (who in ("admin", "owner"))
        assert ("/projects/acme/webhook" in page) == (who == "owner")
        done = await client.post("/projects/acme/webhook", data={"secret": WORDS}, headers=headers)
        assert done.status_code == (303 if who == "owner" else 404 if who == "stranger" else 403)
        if who == "owner":
            assert WORDS not in (await client.get("/projects/acme", headers=headers)).text
            wrong = await client.post("/projects/acme/webhook", data={"secret": ""}, headers=headers)
            assert (wrong.status_code, "16 to 1000 bytes" in wrong.text) == (400, True)
    secrets = await crowd.world.db.fetch("select secret from ops_private.webhooks")
    assert [row["secret"] for row in secrets] == ([WORDS] if who == "owner" else [])


async def test_an_operator_pauses_the_queue_and_a_user_does_not(crowd: Crowd, db_url: str, console_url: str) -> None:
    await crowd.world.queue()
    async with served(db_url) as client:
        key = {"form_key": await form_key(client)}
        for action, reason, says in (("pause", "a <move>", ": a &lt;move&gt;"), ("resume", "", "/queue/pause")):
            done = await client.post(f"/queue/{action}", data={"reason": reason} | key, headers=FROM_HERE)
            assert (done.status_code, done.headers["location"]) == (303, "/queue")
            assert says in (await client.get("/queue", headers=AS_BROWSER)).text
            assert ((await crowd.world.claim())["run_id"] is None) == (action == "pause")
        assert (await client.post("/queue/else", data=key, headers=FROM_HERE)).status_code == 404
    headers = AS_BROWSER | bearer(crowd.users["owner"])
    async with served(console_url, *SIGNS_IN) as client:
        assert "/queue/pause" not in (await client.get("/queue", headers=headers)).text
        done = await client.post("/queue/pause", data={"reason": "x"}, headers=headers)
        assert (done.status_code, "Your role does not permit that." in done.text) == (403, True)
    assert await crowd.world.db.fetchval("select paused_at from ops_private.control") is None


async def test_an_operator_drains_a_worker(crowd: Crowd, db_url: str) -> None:
    await call(crowd.world.db, "register_worker", WORKER, INSTANCE, p_version="1")
    async with served(db_url) as client:
        key = {"form_key": await form_key(client)}
        for action, reason, says in (
            ("drain", "a new disk", ("draining", "a new disk", "/workers/undo")), ("undo", "", ("alive", "Drain…")),
        ):  # fmt: skip
            fields = {"worker": WORKER, "reason": reason}
            done = await client.post(f"/workers/{action}", data=fields | key, headers=FROM_HERE)
            assert (done.status_code, done.headers["location"]) == (303, "/workers")
            page = (await client.get("/workers", headers=AS_BROWSER)).text
            assert [text in page for text in says] == [True] * len(says), page
        done = await client.post("/workers/drain", data={"worker": "none"} | key, headers=FROM_HERE)
        assert (done.status_code, "no worker has registered" in done.text) == (404, True)
        assert (await client.post("/workers/else", data=key, headers=FROM_HERE)).status_code == 404


async def test_a_user_drains_no_worker(crowd: Crowd, console_url: str) -> None:
    await call(crowd.world.db, "register_worker", WORKER, INSTANCE, p_version="1")
    headers = AS_BROWSER | bearer(crowd.users["owner"])
    async with served(console_url, *SIGNS_IN) as client:
        assert "/workers/drain" not in (await client.get("/workers", headers=headers)).text
        done = await client.post("/workers/drain", data={"worker": WORKER}, headers=headers)
    assert (done.status_code, "Your role does not permit that." in done.text) == (403, True)
    assert await crowd.world.db.fetchval("select count(drained_at) from ops_private.worker_ids") == 0
