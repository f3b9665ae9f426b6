"""Requests to forges and chats. No redirect is followed, and no proxy is used."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

from worker import __version__
from worker.model.delivery import Delivery
from worker.outcomes.messages import chat_text, description, link, plain
from worker.outcomes.settings import Forge
from worker.outcomes.wire import NotSent, Wire

ID_HEADER = "X-Ops-Delivery"
_FINAL = frozenset({400, 405, 406, 410, 411, 413, 414, 415, 422})
"""Answers that say that the request is wrong. A wrong token, or an unknown URL, may be repaired in time."""

_MOST = 4096
"""Bytes of an answer that are read."""

_STATES = {"queued": "pending", "started": "pending", "red": "failure", "canceled": "error"}
_GITLAB_STATES = {"queued": "pending", "started": "running", "red": "failed", "canceled": "canceled"}


@dataclass(frozen=True, slots=True)
class Request:
    """A POST of JSON. It may contain a token or be a secret URL, so it is never logged."""

    url: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    accepted: str = ""
    """A text in an answer 400 that means that the receiver has it already."""


def status_request(forge: Forge, delivery: Delivery, token: str, run_url: str | None) -> Request:
    """The status of the run's commit."""
    owner_and_name = forge.repository.replace("{project}", delivery.project)
    commit, context = (delivery.git_commit or "").lower(), plain(f"ops/{delivery.workflow}", 100)
    page = link(delivery, run_url)
    if forge.kind == "gitlab":
        body = {
            "state": _GITLAB_STATES.get(delivery.event, "success"),
            "name": context,
            "description": description(delivery, 250),
        }
        url = f"{forge.base}/api/v4/projects/{quote(owner_and_name, safe='')}/statuses/{commit}"
        headers, accepted = {"PRIVATE-TOKEN": token}, "Cannot transition status"
    else:
        body = {
            "state": _STATES.get(delivery.event, "success"),
            "context": context,
            "description": description(delivery, 140),
        }
        base = forge.base if forge.kind == "github" else f"{forge.base}/api/v1"
        url = f"{base}/repos/{quote(owner_and_name)}/statuses/{commit}"
        bearer = "Bearer" if forge.kind == "github" else "token"
        headers, accepted = {"Authorization": f"{bearer} {token}"}, ""
    return Request(url, headers, body | ({"target_url": page} if page else {}), accepted)


def chat_request(delivery: Delivery, url: str, run_url: str | None) -> Request:
    return Request(url, {}, {"text": chat_text(delivery, run_url)})


def post(request: Request, delivery_id: str, wire: Wire) -> None:
    """Sends the request. Blocking: for a thread. Raises ``NotSent`` with the status, and no text of the receiver."""
    url = urlsplit(request.url)
    host, secure = url.hostname or "", url.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(host, url.port)
    try:
        connection.sock = wire.connect(host, connection.port)
        if secure:
            connection.sock = wire.secure(connection.sock, host)
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("POST", path, json.dumps(request.body), headers=_headers(request, delivery_id))
        answer = connection.getresponse()
        text = answer.read(_MOST).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise NotSent(_explained(error)) from error
    finally:
        connection.close()
    if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
        return
    if answer.status == HTTPStatus.BAD_REQUEST and request.accepted and request.accepted in text:
        return
    redirected = HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST
    what = f"the receiver answered with status {answer.status}"
    raise NotSent(
        f"{what}; redirects are not followed" if redirected else what, final=redirected or answer.status in _FINAL
    )


def _headers(request: Request, delivery_id: str) -> dict[str, str]:
    return {
        **request.headers,
        ID_HEADER: delivery_id,
        "Accept": "application/json",
        "Content-Type": "application/json",
        "Connection": "close",
        "User-Agent": f"ops-worker/{__version__}",
    }


def _explained(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of the receiver is refused: {error.verify_message}"
    return plain(str(error) or type(error).__name__, 300)
