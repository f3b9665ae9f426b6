"""What the messages say: a delivery from the control plane → a mail's text, a chat's text, a commit's status. Pure.

A run's program and its project's members wrote most of the words. So each text is bounded, has no control characters
and none that reorder or hide text, and no markup of the receiver.
"""

from __future__ import annotations

import unicodedata

from worker.model.delivery import Delivery

MAX_CHAT = 3_500
"""Characters of a chat's text; Mattermost takes 4,000."""

MAX_MAIL = 20_000
SHOWN_TESTS = 10
SHORT = 160
LONG = 400

_ENDINGS = {"red": "failed", "green_again": "is green again", "succeeded": "succeeded", "canceled": "was canceled"}
_DESCRIPTIONS = {"queued": "waits for a worker", "started": "is running", **_ENDINGS, "green_again": "succeeded"}


def plain(text: str, limit: int) -> str:
    """The text in one line, with a space for each character that controls, reorders or hides text."""
    kept = (character if unicodedata.category(character)[0] not in "CZ" else " " for character in text[: 4 * limit])
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def link(delivery: Delivery, run_url: str | None) -> str:
    """The page of the run; empty without ``run_url``."""
    if run_url is None:
        return ""
    values = {"{run_id}": delivery.run_id, "{project}": delivery.project, "{number}": str(delivery.run_number)}
    for name, value in values.items():
        run_url = run_url.replace(name, value)
    return run_url


def title(delivery: Delivery) -> str:
    """What happened, in one line."""
    return f"{delivery.name} {plain(delivery.workflow, SHORT)} {_ENDINGS.get(delivery.event, delivery.event)}"


def _facts(delivery: Delivery) -> list[str]:
    why = ": ".join(plain(part, LONG) for part in (delivery.reason, delivery.error_message) if part)
    commit = plain(delivery.git_commit or "", 12).rstrip("…")
    return [
        *([f"Reason: {why}"] if why and delivery.event in ("red", "canceled") else []),
        *([f"Branch: {plain(delivery.git_ref, SHORT)}"] if delivery.git_ref else []),
        *([f"Commit: {commit}"] if commit else []),
        *([f"Attempt: {delivery.attempt}"] if delivery.attempt > 1 else []),
    ]


def _failing(delivery: Delivery) -> list[str]:
    names = [plain(str(name), LONG) for name in delivery.tests.get("failing") or ()]
    failed = delivery.tests.get("failed")
    more = (failed if isinstance(failed, int) else len(names)) - len(names[:SHOWN_TESTS])
    return names[:SHOWN_TESTS] + ([f"and {more} more"] if names and more > 0 else [])


def _sections(delivery: Delivery) -> list[tuple[str, list[str]]]:
    """The lists of a message about a run that failed, without the empty ones."""
    if delivery.event != "red":
        return []
    errors = [plain(line, LONG) for line in delivery.errors]
    known = [plain(line, LONG) for line in delivery.known]
    lists = [("New or known", known), ("Failing tests", _failing(delivery)), ("Last errors", errors)]
    return [(heading, lines) for heading, lines in lists if lines]


def subject(delivery: Delivery) -> str:
    branch = f" ({plain(delivery.git_ref, 60)})" if delivery.git_ref else ""
    return f"{title(delivery)}{branch}"


def mail_text(delivery: Delivery, run_url: str | None) -> str:
    """A mail's plain text."""
    lines = [f"{title(delivery)}.", "", *_facts(delivery)]
    for heading, listed in _sections(delivery):
        lines += ["", f"{heading}:", *(f"  {line}" for line in listed)]
    page = link(delivery, run_url)
    lines += ["", page or f"More: ops-worker runs show {delivery.name}", ""]
    return "\n".join(lines)[:MAX_MAIL]


def chat_text(delivery: Delivery, run_url: str | None) -> str:
    """A chat's text. What others wrote is code, in which a chat finds no mentions, links or markup."""
    mark = {"red": "\N{LARGE RED CIRCLE}", "canceled": "\N{MEDIUM WHITE CIRCLE}"}
    sign = mark.get(delivery.event, "\N{LARGE GREEN CIRCLE}")
    what = _ENDINGS.get(delivery.event, delivery.event)
    page = link(delivery, run_url)
    name = f"<{page}|{delivery.name}>" if page else delivery.name
    text = f"{sign} {name} {_code(plain(delivery.workflow, SHORT))} {what}"
    body = _facts(delivery)
    for heading, listed in _sections(delivery):
        body += [f"{heading}:", *(f"  {line}" for line in listed)]
    if not body:
        return text
    return f"{text}\n```\n{_inert(chr(10).join(body))[:MAX_CHAT]}\n```"


def _inert(text: str) -> str:
    """The text for a place between backticks. A chat reads ``<…>`` as a mention or a link there too."""
    shown = text.replace("`", "'").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return shown.replace("@", "@\N{ZERO WIDTH SPACE}")


def _code(text: str) -> str:
    return f"`{_inert(text)}`"


def description(delivery: Delivery, limit: int) -> str:
    """The words beside the status of a commit."""
    what = f"{delivery.name} {_DESCRIPTIONS[delivery.event]}"
    failed = delivery.tests.get("failed")
    if delivery.event == "red":
        why = f"{failed} failing tests" if failed else delivery.error_message or delivery.reason or ""
        what += f": {why}" if why else ""
    return plain(what, limit)
