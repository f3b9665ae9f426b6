"""Messages from a real outbox to real servers: what arrives, what is tried again, and what is never reached."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from tests.db.test_outbox import COMMIT, waiting
from tests.db.world import ENGINE, INSTANCE, WORKER, World, call, shift_clock
from tests.support.docker import until
from tests.support.postgres import free_port
from tests.support.receivers import DRIP, SILENCE, SLOW, Certificate, Web, mail_server, new_certificate, web
from worker.database.connection import open_pool
from worker.database.queue import Queue
from worker.model.claim import WorkerIdentity
from worker.outcomes.deliver import TIMINGS, Notifier
from worker.outcomes.settings import Notifications, Secrets

SOON = replace(TIMINGS, send=0.5)


@pytest.fixture
def receiver() -> Iterator[Web]:
    with web() as made:
        yield made


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return new_certificate(tmp_path_factory.mktemp("certificate"))


@pytest_asyncio.fixture
async def pool(db_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(db_url, application_name="test", size=2)
    yield pool
    pool.terminate()


class Host:
    """A host with destinations, whose secrets are files."""

    def __init__(self, world: World, pool: asyncpg.Pool, folder: Path) -> None:
        self.world, self.folder = world, folder / "ops-notify"
        self.folder.mkdir()
        self.outbox = Queue("unused", pool, WorkerIdentity(WORKER, INSTANCE, "boot", ENGINE, "0", ()), 60).outbox()

    def secret(self, name: str, value: str) -> str:
        (self.folder / name).write_text(value)
        return name

    def chat(self, url: str, name: str = "chat", **changed: Any) -> dict[str, Any]:
        secret = self.secret(f"{name}-url", url)
        return {"name": name, "kind": "webhook", "url_secret": secret, "allow_private": True} | changed

    async def notifier(self, *destinations: dict[str, Any], **timings: Any) -> Notifier:
        """Registered."""
        settings = Notifications.model_validate({"destinations": list(destinations)})
        made = Notifier(self.outbox, settings, Secrets(self.folder.parent), replace(SOON, **timings))
        await made.register()
        return made

    async def last_error(self) -> str:
        """Of the message that waits; it is due again at once."""
        error: str = await self.world.db.fetchval(
            "update ops_private.outbox set due_at = '-infinity' returning last_error"
        )
        return error


@pytest.fixture
def host(world: World, pool: asyncpg.Pool, tmp_path: Path) -> Host:
    return Host(world, pool, tmp_path)


async def test_a_chat_is_told_of_a_failure_once(host: Host, world: World, receiver: Web) -> None:
    notifier = await host.notifier(host.chat(f"{receiver.url}/hooks/x?y=1"))
    await world.run_in("failed")
    delivery_id = str(await world.db.fetchval("select delivery_id from ops_private.outbox"))
    with capture_logs() as logs:
        await notifier.once()
        await notifier.once()
    [request] = receiver.requests
    assert (request.path, request.delivery_id) == ("/hooks/x?y=1", delivery_id)
    assert request.headers["content-type"] == "application/json"
    assert request.body["text"].startswith("\N{LARGE RED CIRCLE} acme#1 `build/build` failed\n```\nReason: failed\n")
    assert await waiting(world) == []
    assert [line["event"] for line in logs] == ["message sent"]
    assert "/hooks" not in str(logs)


async def test_a_forge_gets_the_states_of_a_commit_in_their_order(host: Host, world: World, receiver: Web) -> None:
    token = host.secret("token", "t0ken\n")
    given = {"name": "f", "kind": "gitea", "repository": "o/r", "token": token, "url": receiver.url}
    notifier = await host.notifier(given | {"allow_private": True})
    run = await world.queue(metadata=f'{{"git_commit": "{COMMIT}"}}')
    for status in ("claimed", "running", "succeeded"):
        await notifier.once()
        await world.set_status(run, status)
    await notifier.once()
    assert [request.body["state"] for request in receiver.requests] == ["pending", "pending", "success"]
    assert {request.path for request in receiver.requests} == {f"/api/v1/repos/o/r/statuses/{COMMIT}"}
    assert {request.headers["authorization"] for request in receiver.requests} == {"token t0ken"}


@pytest.mark.parametrize(
    ("answers", "times", "left"),
    [
        ([500, 429, 404], 4, []), ([401], 2, []), ([422], 1, []), ([400], 1, []), ([302, 200], 1, []),
        ([500, 410], 2, []),
    ],
)  # fmt: skip
async def test_what_a_receiver_refuses_is_sent_again_with_the_same_id_unless_that_is_useless(
    host: Host, world: World, receiver: Web, answers: list[int], times: int, left: list[Any]
) -> None:
    notifier = await host.notifier(host.chat(receiver.url))
    receiver.answers = list(answers)
    await world.run_in("failed")
    for n in range(5):
        await notifier.once()
        await shift_clock(world.db, 3600 * (n + 1))
    assert [request.path for request in receiver.requests] == ["/"] * times  # no redirect is followed
    assert len({request.delivery_id for request in receiver.requests}) == 1
    assert await waiting(world) == left


async def test_gitlab_s_answer_about_a_state_that_it_has_is_no_error(host: Host, world: World, receiver: Web) -> None:
    token = host.secret("token", "t0ken")
    given = {"name": "f", "kind": "gitlab", "repository": "o/r", "token": token, "url": receiver.url}
    notifier = await host.notifier(given | {"allow_private": True})
    receiver.answers, receiver.text = [400], '{"message": "Cannot transition status via :run from :running"}'
    await world.queue(metadata=f'{{"git_commit": "{COMMIT}"}}')
    with capture_logs() as logs:
        await notifier.once()
    assert [line["event"] for line in logs] == ["message sent"]


@pytest.mark.parametrize("answer", [SILENCE, DRIP])
async def test_a_receiver_that_never_answers_ends_at_the_limit_and_delays_no_other(
    host: Host, world: World, receiver: Web, answer: int
) -> None:
    receiver.answers = [answer]
    with web() as other:
        notifier = await host.notifier(host.chat(receiver.url, "dead"), host.chat(other.url))
        await world.run_in("failed")
        delivering = asyncio.create_task(notifier.once())
        await until(lambda: other.requests)
        assert len(other.requests) == 1
        await asyncio.wait_for(delivering, 30)
    assert await host.last_error() == "the receiver took longer than 0.5 s"


async def test_a_receiver_that_is_down_gets_the_message_later(host: Host, world: World) -> None:
    port = free_port()
    with web() as other:
        notifier = await host.notifier(host.chat(f"http://localhost:{port}"))
        await world.run_in("failed")
        await notifier.once()
        assert "Connection refused" in await host.last_error()
        host.secret("chat-url", other.url)  # read at each attempt
        await notifier.once()
        assert len(other.requests) == 1


@pytest.mark.parametrize("url", ["https://127.0.0.1:{}", "https://localhost:{}", "https://[::ffff:127.0.0.1]:{}"])
async def test_a_private_address_is_not_reached_unless_the_host_allows_it(host: Host, world: World, url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        notifier = await host.notifier(host.chat(url.format(server.getsockname()[1]), allow_private=False))
        await world.run_in("failed")
        await notifier.once()
        assert "which is no public address; allow_private permits it" in await host.last_error()
        with pytest.raises(BlockingIOError):
            server.accept()


async def test_tls_is_verified_for_the_name_of_the_url(host: Host, world: World, certificate: Certificate) -> None:
    with web(certificate) as receiver:
        chat = host.chat(receiver.url)
        trusting = chat | {"ca_file": str(certificate.file)}
        await world.run_in("running")
        notifier = await host.notifier(chat)
        await world.db.execute("update ops.runs set status = 'failed'")
        await notifier.once()
        assert (await host.last_error()).startswith("the certificate of the receiver is refused: self")
        host.secret("chat-url", receiver.url.replace("localhost", "127.0.0.1"))
        await (await host.notifier(trusting)).once()
        assert "127.0.0.1" in await host.last_error()  # it is for another name
        assert receiver.requests == []
        host.secret("chat-url", receiver.url)
        await (await host.notifier(trusting)).once()
        assert len(receiver.requests) == 1


def mail(host: Host, port: int, **changed: Any) -> dict[str, Any]:
    password = host.secret("smtp", "hunter22")
    return {
        "name": "mail", "kind": "mail", "host": "localhost", "port": port, "username": "ops", "password": password,
        "from": "ops@example.com", "to": ["a@example.com", "b@example.com"], "allow_private": True,
    } | changed  # fmt: skip


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_mail_is_sent_under_tls_with_the_login(
    host: Host, world: World, certificate: Certificate, tls: str
) -> None:
    async with mail_server(certificate, implicit=tls == "implicit") as post:
        given = mail(host, post.port, tls=tls, ca_file=str(certificate.file))
        notifier = await host.notifier(given, send=20)
        run = await world.running()
        await call(world.db, "append_run_log", run, "error", "KeyError: 'é'")
        await call(world.db, "complete_workflow_run", run, 1, "exit code 1", WORKER, INSTANCE, "exit_code")
        delivery_id = await world.db.fetchval("select delivery_id from ops_private.outbox")
        await notifier.once()
    [letter] = post.letters
    assert (letter.sender, letter.to) == ("ops@example.com", ["a@example.com", "b@example.com"])
    assert (letter.secure, letter.login) == (True, "ops:hunter22")
    assert letter.message["Message-ID"] == f"<{delivery_id}@example.com>"
    assert letter.message["X-Ops-Delivery"] == str(delivery_id)
    assert letter.message["Subject"] == "acme#1 build/build failed"
    content = letter.message.get_payload(decode=True)
    assert isinstance(content, bytes)
    assert "Last errors:\r\n  KeyError: 'é'" in content.decode()
    assert await waiting(world) == []


@pytest.mark.parametrize(
    ("refusals", "error"),
    [
        ({"EHLO": b"250 plain", "HELO": b"250 plain"}, "the receiver does not offer STARTTLS"),
        ({"AUTH": b"535 no"}, "the receiver answered with code 535"), ({"DATA": b"451 later"}, "code 451"),
        ({"DATA": b"554 no"}, ""), ({"MAIL": b"452 full"}, "code 452"), ({"RCPT": b"450 grey"}, "every recipient"),
        ({"RCPT": b"550 unknown"}, ""), ({"rcpt TO:<b@example.com>": b"550 unknown"}, ""),
    ],
    ids=str,
)  # fmt: skip
async def test_a_refused_mail_is_tried_again_unless_that_is_useless(
    host: Host, world: World, certificate: Certificate, refusals: dict[str, bytes], error: str
) -> None:
    async with mail_server(certificate) as post:
        notifier = await host.notifier(mail(host, post.port, ca_file=str(certificate.file)), send=20)
        post.refusals = {word: answer for name, answer in refusals.items() for word in (name, name.lower())}
        await world.run_in("failed")
        await notifier.once()
        assert await waiting(world) == ([("mail", "red")] if error else [])
        assert len(post.letters) == (1 if "rcpt TO:<b@example.com>" in refusals else 0)  # the other one has it
        if error:
            assert error in await host.last_error()


async def test_a_look_for_messages_is_one_statement(host: Host, world: World, pool: asyncpg.Pool) -> None:
    said: list[Any] = []
    notifier = await host.notifier(host.chat("http://localhost:1"), host.chat("http://localhost:1", "other"))
    await notifier.once()  # the driver has read its types
    connections = [await pool.acquire() for _ in range(2)]
    for connection in connections:
        connection.add_query_logger(said.append)
        await pool.release(connection)
    await notifier.once()
    assert [each.query for each in said] == ["select ops.take_deliveries($1, $2, $3)"]


async def test_a_worker_whose_destinations_are_unknown_registers_them_again(host: Host, world: World) -> None:
    notifier = await host.notifier(host.chat("http://localhost:1"))
    await world.db.execute("delete from ops_private.destinations")
    await notifier.once()
    assert await world.db.fetchval("select name from ops_private.destinations") == "chat"


async def test_it_delivers_while_it_is_open_and_at_its_end_what_is_left(
    host: Host, world: World, receiver: Web
) -> None:
    notifier = await host.notifier(host.chat(receiver.url), poll=0.05)
    async with notifier.opened():
        await world.run_in("failed")
        await until(lambda: receiver.requests)
    receiver.answers = [SLOW]
    await world.run_in("failed")
    late = await host.notifier(host.chat(receiver.url), host.chat(f"{receiver.url}/other", "other"), poll=600, send=20)
    async with late.opened():
        await until(lambda: len(receiver.requests) == 2)
        await world.run_in("failed")
    assert await waiting(world) == []
    told = [(request.path, request.body["text"].split()[1]) for request in receiver.requests]
    assert told[:2] == [("/", "acme#1"), ("/", "acme#2")]
    assert sorted(told[2:]) == [("/", "acme#3"), ("/other", "acme#3")]
