"""What messages say, and that nothing in them commands the receiver."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from worker.model.delivery import Delivery
from worker.outcomes.http import Request, status_request
from worker.outcomes.mail import mail_message
from worker.outcomes.messages import MAX_CHAT, MAX_MAIL, chat_text, mail_text, plain
from worker.outcomes.settings import Forge, Mail

COMMIT = "0123456789ABCDEF0123456789abcdef01234567"
EVIL = "\x1b]0;x\x07\u202e`<!channel> @all [a](http://x)\r\nBcc: me@x.example\u2028\ud800"
RED = Delivery(
    delivery_id="3f2504e0-4f89-41d3-9a0c-0305e82c3301", destination="d", event="red",
    created_at=datetime(2026, 2, 13, 12, tzinfo=UTC), run_id="11111111-2222-4333-8444-555555555555", project="acme",
    run_number=12, workflow="test/nightly", git_ref="18.0", git_commit=COMMIT, attempt=1, reason="exit_code",
    error_message="exit code 1", tests={"failed": 12, "failing": [f"t.{n}" for n in range(12)]},
    known=("known since acme#3, 2 times, in 1 project: t.0",), errors=("KeyError: 'x'",),
)  # fmt: skip
RUN_URL = "https://builds.example/{project}/{number}?id={run_id}"
PAGE = f"https://builds.example/acme/12?id={RED.run_id}"


def test_a_mail_about_a_failure_names_reason_tests_and_errors() -> None:
    assert mail_text(RED, RUN_URL).splitlines() == [
        "acme#12 test/nightly failed.", "", "Reason: exit_code: exit code 1", "Branch: 18.0", "Commit: 0123456789A",
        "", "New or known:", "  known since acme#3, 2 times, in 1 project: t.0",
        "", "Failing tests:", *(f"  t.{n}" for n in range(10)), "  and 2 more",
        "", "Last errors:", "  KeyError: 'x'", "", PAGE,
    ]  # fmt: skip
    assert mail_text(replace(RED, event="green_again"), None).splitlines() == [
        "acme#12 test/nightly is green again.", "", "Branch: 18.0", "Commit: 0123456789A", "",
        "More: ops-worker runs show acme#12",
    ]  # fmt: skip


def test_a_chat_shows_what_others_wrote_as_code() -> None:
    first, fence, *body, end = chat_text(RED, RUN_URL).splitlines()
    assert first == f"\N{LARGE RED CIRCLE} <{PAGE}|acme#12> `test/nightly` failed"
    assert (fence, end) == ("```", "```")
    assert body[:2] == ["Reason: exit_code: exit code 1", "Branch: 18.0"]
    again = replace(RED, event="green_again", git_ref=None, git_commit=None)
    assert chat_text(again, None) == "\N{LARGE GREEN CIRCLE} acme#12 `test/nightly` is green again"


@pytest.mark.parametrize("field", ["workflow", "git_ref", "git_commit", "error_message", "errors", "known", "tests"])
def test_no_text_of_a_run_commands_the_receiver(field: str) -> None:
    value: Any = {"errors": (EVIL,), "known": (EVIL,), "tests": {"failed": 1, "failing": [EVIL]}}.get(field, EVIL)
    evil = replace(RED, **{field: value})
    mail = Mail.model_validate({"name": "m", "kind": "mail", "host": "h", "from": "a@b.example", "to": ["c@d.example"]})
    message = mail_message(mail, evil, None)
    assert message["To"] == "c@d.example"
    assert message["Bcc"] is None
    for text in (mail_text(evil, None), chat_text(evil, None), str(message["Subject"])):
        assert not {"\x1b", "\x07", "\r", "\u202e", "\u2028", "\ud800"} & set(text)
        assert "\nBcc:" not in text
    chat = chat_text(evil, None)
    assert "<" not in chat
    assert "@all" not in chat
    assert chat.count("```") == 2
    assert chat.count("`") == 8  # two fences, and the name of the workflow


def test_every_text_is_bounded() -> None:
    long = "x" * 100_000
    tests = {"failed": 99, "failing": [long] * 20}
    big = replace(RED, error_message=long, errors=(long,) * 10, known=(long,) * 5, workflow=long, tests=tests)
    assert len(mail_text(big, None)) <= MAX_MAIL
    assert len(chat_text(big, None)) <= MAX_CHAT + 300
    assert chat_text(big, None).endswith("\n```")
    assert plain(" a\tb \n c ", 9) == "a b c"
    assert plain("abcdef", 4) == "abc…"


FORGES = {
    "github": ("https://api.github.com/repos/acme/acme/statuses/", "Authorization", "Bearer t"),
    "gitlab": ("https://gitlab.com/api/v4/projects/acme%2Facme/statuses/", "PRIVATE-TOKEN", "t"),
    "gitea": ("https://git.example/api/v1/repos/acme/acme/statuses/", "Authorization", "token t"),
}
STATES = {
    "github": ["pending", "pending", "failure", "success", "success", "error"],
    "gitlab": ["pending", "running", "failed", "success", "success", "canceled"],
    "gitea": ["pending", "pending", "failure", "success", "success", "error"],
}


@pytest.mark.parametrize("kind", FORGES)
def test_a_forge_gets_the_status_in_its_own_words(kind: str) -> None:
    given = {"name": "f", "kind": kind, "repository": "acme/{project}", "token": "x"}
    forge = Forge.model_validate(given | ({"url": "https://git.example/"} if kind == "gitea" else {}))
    url, header, value = FORGES[kind]

    def request(event: str) -> Request:
        return status_request(forge, replace(RED, event=event), "t", RUN_URL)

    events = ("queued", "started", "red", "green_again", "succeeded", "canceled")
    assert [request(event).body["state"] for event in events] == STATES[kind]
    red = request("red")
    assert (red.url, red.headers) == (url + COMMIT.lower(), {header: value})
    assert red.body["name" if kind == "gitlab" else "context"] == "ops/test/nightly"
    assert red.body["description"] == "acme#12 failed: 12 failing tests"
    assert red.body["target_url"] == PAGE
