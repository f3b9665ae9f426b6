"""Opens the object store that a URL names (a folder, S3, Google or Azure), and explains the store's errors."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from worker.errors import ConfigurationError

_STORES: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_KEY",
}
_BACKOFF = {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 2}
# A request may take two minutes: one part at 0.35 Mbit/s. An unreachable store is retried for the same time.
_PATIENT: dict[str, Any] = {
    "client_options": {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(minutes=2)},
    "retry_config": {"max_retries": 50, "retry_timeout": timedelta(minutes=2), "backoff": _BACKOFF},
}
_IMPATIENT: dict[str, Any] = {
    "client_options": {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=10)},
    "retry_config": {"max_retries": 2, "retry_timeout": timedelta(seconds=20), "backoff": _BACKOFF},
}


@dataclass(frozen=True, slots=True)
class Location:
    """A store and its URL; ``folder`` is None unless the store is a folder. ``impatient`` retries for 20 s at most."""

    store: Any
    impatient: Any
    url: str
    folder: Path | None


def locate(url: str) -> Location:
    """The store at ``file:///folder`` (which is created), ``s3://bucket/prefix``, ``gs://...`` or ``az://...``.

    Credentials, region and endpoint come from the environment (``AWS_*``). Raises ``ConfigurationError``.
    """
    if re.search(r"[@?#]", url):
        raise _refused(f"credentials do not belong into the URL; set {_CREDENTIALS['s3']}")
    try:
        parts = urlsplit(url)
        if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
            return _folder(parts)
        prefix = parts.path.strip("/")
        straight = not prefix or {"", ".", ".."}.isdisjoint(prefix.split("/"))
        if parts.scheme in _STORES and re.fullmatch(r"[\w.-]+", parts.netloc, re.ASCII) and straight:
            return _bucket(parts, prefix)
    except (BaseError, OSError, ValueError) as error:
        raise _refused(f"{url}: {_first_line(error)}") from None
    raise _refused(f"expected file:///folder or s3://bucket/prefix, got {url!r}")


def _folder(parts: SplitResult) -> Location:
    root = Path(os.path.normpath(unquote(parts.path)))
    root.mkdir(mode=0o750, parents=True, exist_ok=True)
    store = LocalStore(root, automatic_cleanup=True)  # removes empty folders
    return Location(store, store, root.as_uri(), root)


def _bucket(parts: SplitResult, prefix: str) -> Location:
    endpoints = [os.environ[variable] for variable in _ENDPOINTS if os.environ.get(variable)]
    if not all(re.match(r"https?://[\w.-]", endpoint) for endpoint in endpoints):
        raise _refused("AWS_ENDPOINT_URL: expected https://host/path")
    plain = any(endpoint.startswith("http://") for endpoint in endpoints)
    store, impatient = (
        _STORES[parts.scheme](
            parts.netloc,
            prefix=prefix or None,
            client_options={**kind["client_options"], "allow_http": plain},
            retry_config=kind["retry_config"],
        )
        for kind in (_PATIENT, _IMPATIENT)
    )
    return Location(store, impatient, f"{parts.scheme}://{parts.netloc}" + (f"/{prefix}" if prefix else ""), None)


def explain(error: Exception, url: str) -> str:
    """Explains an error of the store at that URL, and what to do. Quotes no header and no query of a request."""
    text = _first_line(error)
    if number := re.search(r"\(os error (\d+)\)", text):
        code = int(number[1])
        denied = code in (errno.EACCES, errno.EPERM)
        return f"user {os.geteuid()} may not write there" if denied else os.strerror(code).lower()
    credentials = _CREDENTIALS.get(url.partition(":")[0], "the permissions")
    found = re.search(r"<Code>(\w+)</Code>", str(error)), re.search(r"status code: (\d+)", text)
    word, status = (match[1] if match else "" for match in found)
    answer = f"{word} (HTTP {status})" if word else f"HTTP {status}"
    if "//169.254.169.254/" in text:  # a cloud's address for the credentials of a virtual machine
        return f"there are no credentials; set {credentials}"
    if word == "NoSuchBucket":
        return "there is no such bucket"
    if word == "AccessDenied":
        return "the credentials are known, but may not write there (AccessDenied)"
    if word == "EntityTooLarge" or status == "413":
        return f"the store does not take files of that size: {answer}"
    if status in ("401", "403"):
        return f"the store refuses the credentials: {answer}; check {credentials}"
    if status:
        return f"the store answers {answer}"
    if "HTTP error" in text:
        return "the store cannot be reached; check the network and the endpoint (AWS_ENDPOINT_URL)"
    return re.sub(r"\?\S*", "", text)


def _refused(problem: str) -> ConfigurationError:
    return ConfigurationError("artifact_store", problem)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
