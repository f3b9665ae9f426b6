"""Webhooks to the console, over HTTP: what each forge sends, what is refused, and senders that are slow or many."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import httpx
import pytest
import pytest_asyncio
from starlette.exceptions import HTTPException

from tests.console.browser import SIGNS_IN
from tests.console.scene import console
from tests.db.forges import FORGES, body, headers, opened_shop
from tests.db.world import World
from worker.console import bounds
from worker.console.bounds import AT_ONCE, BODY_SECONDS, MOST_DELIVERY, MOST_HELD, Deliveries

pytestmark = pytest.mark.timeout(120)


@pytest_asyncio.fixture
async def shop(world: World) -> World:
    return await opened_shop(world)


@asynccontextmanager
async def sender(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with console(url, *SIGNS_IN) as address, httpx.AsyncClient(base_url=address) as client:
        yield client


@pytest.mark.parametrize("forge", FORGES)
async def test_a_push_of_each_forge_queues_runs_once(shop: World, console_url: str, forge: str) -> None:
    content, path = body(f"{forge}_push"), f"/hooks/{shop.project}"
    async with sender(console_url) as client:
        for status, created in ((202, True), (200, False)):
            done = await client.post(path, content=content, headers=headers(forge, content))
            assert (done.status_code, done.headers["content-type"]) == (status, "application/json")
            runs = done.json()["runs"]
            assert [(run["workflow"], run["created"]) for run in runs] == [("test", created), ("deploy/live", created)]
    assert await shop.db.fetchval("select count(*) from ops.runs where status = 'queued'") == 2


async def test_each_answer_has_the_status_that_fits(shop: World, console_url: str) -> None:
    push, tag, deleted = body("github_push"), body("github_tag"), body("github_push_deleted")
    right = headers("github", push)
    branch = body("github_branch")
    async with sender(console_url) as client:
        for project, content, sent, status, says in (
            (shop.project, tag, headers("github", tag), 200, "nothing: it is not about a branch"),
            (shop.project, branch, headers("github", branch), 202, "push to feature/cart"),
            (shop.project, deleted, headers("github", deleted), 202, "the branch feature/cart is deleted"),
            (shop.project, push, headers("github", push, secret="wrong-horse-battery"), 403, "signature is wrong"),
            (shop.project, push + b" ", right, 403, "signature is wrong"),
            (uuid.uuid4(), push, right, 403, "there is no such project"),
            ("acme", push, right, 404, "expected its id"),
            (shop.project, push, {}, 400, "the headers name no event"),
            (shop.project, b"[]", headers("github", b"[]"), 400, "the body must be a JSON object"),
        ):
            done = await client.post(f"/hooks/{project}", content=content, headers=sent)
            assert (done.status_code, says in done.text) == (status, True), done.text
        assert (await client.get(f"/hooks/{shop.project}")).status_code == 405


async def test_a_login_that_may_not_receive_webhooks_is_named(shop: World, console_url: str) -> None:
    await shop.db.execute("revoke ops_webhook from ops_console")
    content = body("github_push")
    async with sender(console_url) as client:
        done = await client.post(f"/hooks/{shop.project}", content=content, headers=headers("github", content))
    assert (done.status_code, "grant ops_webhook" in done.text) == (503, True)


async def test_a_body_of_25_mib_is_taken_and_a_larger_one_is_refused(shop: World, console_url: str) -> None:
    content = json.loads(body("github_push"))
    rest = MOST_DELIVERY - len(json.dumps(content | {"x": ""}).encode())
    most = json.dumps(content | {"x": "x" * rest}).encode()

    async def parts() -> AsyncIterator[bytes]:
        """One byte more, without a length that announces it."""
        yield most
        yield b" "

    async with sender(console_url) as client:
        done = await client.post(f"/hooks/{shop.project}", content=most, headers=headers("github", most), timeout=60)
        assert (len(most), done.status_code) == (MOST_DELIVERY, 202)
        done = await client.post(f"/hooks/{shop.project}", content=parts(), headers=headers("github", most))
        assert (done.status_code, done.headers["connection"]) == (413, "close")
        head = f"POST /hooks/{shop.project} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MOST_DELIVERY + 1}\r\n\r\n"
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(head.encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 413 ")  # before it is sent
        writer.close()


async def test_a_slow_sender_is_cut_and_the_pages_go_on(shop: World, console_url: str) -> None:
    """More senders than connections to the database: some send a byte a second of the body, some of the headers."""
    head = f"POST /hooks/{shop.project} HTTP/1.1\r\nHost: localhost\r\nX-GitHub-Event: push\r\n"

    async def slow(address: httpx.URL, first: str) -> tuple[str, float]:
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(first.encode())
        begun, answer = time.monotonic(), asyncio.ensure_future(reader.read())
        while not answer.done() and time.monotonic() - begun < 4 * BODY_SECONDS:
            writer.write(b"x")
            await asyncio.wait([answer], timeout=1)
        writer.close()
        return (await answer).decode(), time.monotonic() - begun

    async with sender(console_url) as client:
        firsts = [head + "Content-Length: 1000\r\n\r\n", head + "X-Slow: "]
        slowly = [asyncio.ensure_future(slow(client.base_url, first)) for first in firsts * 20]
        await asyncio.sleep(1)
        assert (await client.get("/sign-in")).status_code == 200
        content = body("github_push")
        done = await client.post(f"/hooks/{shop.project}", content=content, headers=headers("github", content))
        assert done.status_code == 202
        answers = await asyncio.gather(*slowly)
    assert {answer.partition("\r\n")[0] for answer, _ in answers} == {"HTTP/1.1 408 Request Timeout", ""}
    assert max(seconds for _, seconds in answers) < 2 * BODY_SECONDS


async def test_deliveries_take_a_bounded_part_of_memory_and_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "TURN_SECONDS", 0.01)
    deliveries = Deliveries()
    with deliveries.holding() as more:
        more(MOST_HELD)
        with deliveries.holding() as another, pytest.raises(HTTPException, match="503"):
            another(1)
    with deliveries.holding() as more:
        more(MOST_HELD)
    async with anyio.create_task_group() as tasks:

        async def stay() -> None:
            async with deliveries.turn():
                await anyio.sleep_forever()

        for _ in range(AT_ONCE):
            tasks.start_soon(stay)
        await anyio.lowlevel.checkpoint()
        with pytest.raises(HTTPException, match="503"):
            async with deliveries.turn():
                pass
        tasks.cancel_scope.cancel()
    async with deliveries.turn():
        pass
