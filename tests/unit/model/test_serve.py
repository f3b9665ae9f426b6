"""The URL of a served run, the labels for a reverse proxy, and what a host may set."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.model.serve import check_serve_address, check_serve_url, project_name, proxy_labels, published_url, route

FORM = "https://{slug}-{ref}.preview.example"


@pytest.mark.parametrize(
    ("form", "slug", "ref", "url"),
    [
        (FORM, "acme", "main", "https://acme-main.preview.example"),
        (FORM, "acme", "", "https://acme-head.preview.example"),
        (FORM, "acme", "feature/X_1", "https://acme-featurex118a9ab.preview.example"),
        (FORM, "acme", "19.0", "https://acme-190dcccf7.preview.example"),
        ("http://{ref}.{slug}.example:8443/", "acme", "main", "http://main.acme.example:8443"),
        ("https://pr-{run}-{slug}.example", "acme", "main", "https://pr-17-acme.example"),
    ],
)
def test_route_of_a_run_follows_the_host_s_form(form: str, slug: str, ref: str, url: str) -> None:
    assert check_serve_url(form) == form
    assert route(form, slug, ref, 17) == url


def test_no_two_projects_or_refs_have_the_same_host_name() -> None:
    slugs = ("a", "a-b", "a-b-c", "-a", "a-", "a" * 70, "a" * 71)
    refs = ("", "b", "c", "b-c", "b/c", "B", "19.0", "190", "x" * 40, "x" * 41)
    for form in (FORM, "https://{ref}-{slug}.example", "https://{ref}.{slug}.example"):
        assert len({route(form, slug, ref, 1) for slug, ref in itertools.product(slugs, refs)}) == len(slugs) * len(
            refs
        )


@given(slug=st.from_regex(r"[a-z0-9-]{1,100}", fullmatch=True), ref=st.text(max_size=300))
def test_every_host_name_is_one_that_a_name_server_can_have(slug: str, ref: str) -> None:
    host = route(FORM, slug, ref, 1).removeprefix("https://")
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", label) for label in host.split("."))
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", project_name(ref))


@pytest.mark.parametrize(
    "form",
    [
        "ftp://{slug}.example", "{slug}.example", "https://{slug}.exa mple", "https://{slug}{ref}.example",
        "https://{slug}.{branch}.example", "https://{slug}.example/{ref}", "https://-{slug}.example",
        "https://{slug}..example", "https://{SLUG}.example", "https://{slug}.example`) || Host(`b",
        "https://{ref}.example", "https://{slug}.{slug}.example", "https://x{slug}.example",
    ],
)  # fmt: skip
def test_form_of_a_url_that_is_no_host_name_of_one_project_is_refused(form: str) -> None:
    with pytest.raises(ValueError, match=r"^expected .*\{slug\}"):
        check_serve_url(form)


@pytest.mark.parametrize("address", ["localhost", "0.0.0.0", "::", "", "127.0.0.1:80"])  # noqa: S104 - refused
def test_address_that_is_not_one_of_the_host_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="expected one address"):
        check_serve_address(address)


def test_proxies_find_the_container_by_its_labels() -> None:
    assert proxy_labels("ops-run-1", "https://acme-main.example", 8069) == {
        "traefik.enable": "true",
        "traefik.http.routers.ops-run-1.rule": "Host(`acme-main.example`)",
        "traefik.http.routers.ops-run-1.tls": "true",
        "traefik.http.services.ops-run-1.loadbalancer.server.port": "8069",
        "caddy": "acme-main.example",
        "caddy.reverse_proxy": "{{upstreams 8069}}",
    }
    plain = proxy_labels("ops-run-1", "http://acme-main.example:81", 80)
    assert plain["caddy"] == "http://acme-main.example:81"
    assert "traefik.http.routers.ops-run-1.tls" not in plain


def test_url_of_a_published_port() -> None:
    assert (published_url("127.0.0.1", 1), published_url("::1", 2)) == ("http://127.0.0.1:1", "http://[::1]:2")
