"""Served runs, which stay: what a configuration says of one, its URL, and the labels for a reverse proxy. Pure.

The host chooses the form of the URL. A host name belongs to one project by construction: the slug is in it exactly
once, set apart by dashes or dots, and nothing else in it that a project chooses has a dash.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from worker.model.fields import STRICT

SERVE_LABEL = "ops:serve"
"""The database gives it to every served run. A worker offers it while it has room for another one."""

MAX_PATH = 1024
"""Characters of the path of a health check."""

NO_REF = "head"
"""What stands for the git ref of a run that has none."""

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PLACEHOLDER = re.compile(r"\{(slug|ref|run)\}")
_LONGEST_REF = 30
_KEPT, _HASH = 20, 40
"""Characters that are kept of a name that no host may have, and the digits of its hash: more than a ref ever has."""


def _path(path: str) -> str:
    if not re.fullmatch(r"/[\x21-\x7e]*", path, re.ASCII):
        raise ValueError("expected the path of a URL, such as /web/health")
    return path


class ServeHealth(BaseModel):
    """``serve.health``: the path that answers 2xx or 3xx once the run can be used, and how often it is asked."""

    model_config = STRICT

    path: Annotated[str, Field(max_length=MAX_PATH), AfterValidator(_path)] = "/"
    interval_seconds: float = Field(2, ge=0.1, le=3600)


class ServeTerms(BaseModel):
    """What a served run needs until its end. ``url`` is that of its route; None: the one of its published port."""

    model_config = ConfigDict(frozen=True)

    port: int
    path: str
    interval_seconds: float
    ready_timeout_seconds: float
    ttl_seconds: float
    url: str | None = None


class Serve(BaseModel):
    """``serve``: the run stays, and answers HTTP requests on that port."""

    model_config = STRICT

    port: int = Field(ge=1, le=65_535)
    health: ServeHealth = ServeHealth()
    ready_timeout_seconds: float = Field(300, gt=0, le=86_400)
    ttl_seconds: float | None = Field(None, gt=0)

    def terms(self, ttl_seconds: float, url: str | None) -> ServeTerms:
        """What it comes to on a host that grants so much, with the URL of its route."""
        return ServeTerms(
            port=self.port,
            path=self.health.path,
            interval_seconds=self.health.interval_seconds,
            ready_timeout_seconds=min(self.ready_timeout_seconds, ttl_seconds),
            ttl_seconds=ttl_seconds,
            url=url,
        )


def check_serve_address(address: str) -> str:
    """Returns the address. Raises ``ValueError`` for what is not one address of the engine's host."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        parsed = None
    if parsed is None or parsed.is_unspecified:
        raise ValueError("expected one address of the engine's host, such as 127.0.0.1")
    return address


def check_serve_url(url: str | None) -> str | None:
    """Returns the form of a URL; None stands for no route. Raises ``ValueError``."""
    if url is None:
        return None
    parts = re.fullmatch(r"https?://([a-z0-9.{}-]+)(:[0-9]{1,5})?/?", url, re.ASCII)
    labels = [] if parts is None else parts[1].split(".")
    filled = [_PLACEHOLDER.sub("x", label) for label in labels]
    alone = all(re.fullmatch(r"(.*-)?\{slug\}(-.*)?", label) for label in labels if "{slug}" in label)
    if not filled or not all(_DNS_LABEL.fullmatch(label) for label in filled) or "}{" in url:
        raise ValueError(
            "expected http or https, and a host name with {slug}, and as wanted {ref} and {run}, such as "
            "https://{slug}-{ref}.preview.example"
        )
    if url.count("{slug}") != 1 or not alone:
        raise ValueError(
            "expected {slug} once, with a dash or a dot beside it, so that no two projects have the same host name"
        )
    return url


def route(form: str, slug: str, ref: str, run_number: int) -> str:
    """The URL of a run, by the host's form of it."""
    values = {"slug": slug, "ref": _plain(ref), "run": str(run_number)}
    scheme, _, rest = form.rstrip("/").partition("://")
    host, colon, port = rest.partition(":")
    labels = (_PLACEHOLDER.sub(lambda found: values[found[1]], label) for label in host.split("."))
    return f"{scheme}://{'.'.join(map(_dns_label, labels))}{colon}{port}"


def _plain(ref: str) -> str:
    """A git ref as letters and digits. What had others, or is too long, ends with digits of its hash."""
    if not ref:
        return NO_REF
    plain = re.sub(r"[^a-z0-9]", "", ref.lower(), flags=re.ASCII)
    if plain == ref and len(plain) <= _LONGEST_REF:
        return plain
    return plain[:_LONGEST_REF] + hashlib.sha256(ref.encode()).hexdigest()[:6]


def _dns_label(text: str) -> str:
    """The text, if a host name may have it between two dots; else the beginning of it and its hash."""
    if _DNS_LABEL.fullmatch(text):
        return text
    return f"{text.strip('-')[:_KEPT].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:_HASH]}".lstrip("-")


def proxy_labels(name: str, url: str, port: int) -> dict[str, str]:
    """The labels by which Traefik and caddy-docker-proxy find the container of that name and route the URL to it."""
    parts = urlsplit(url)
    router = f"traefik.http.routers.{name}"
    tls = {f"{router}.tls": "true"} if parts.scheme == "https" else {}
    return {
        "traefik.enable": "true",
        f"{router}.rule": f"Host(`{parts.hostname}`)",
        **tls,
        f"traefik.http.services.{name}.loadbalancer.server.port": str(port),
        "caddy": url if parts.scheme == "http" else parts.netloc,
        "caddy.reverse_proxy": f"{{{{upstreams {port}}}}}",
    }


def published_url(host: str, port: int) -> str:
    """The URL of a published port."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def project_name(text: str) -> str:
    """A workflow's name as a host name on the network of its project, without the domain."""
    return _dns_label(re.sub(r"[^a-z0-9]+", "-", text.lower(), flags=re.ASCII).strip("-"))
