"""Tokens, cookies, headers of proxies; what the console refuses to start with."""

from __future__ import annotations

import base64
import hmac
import json
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.console.browser import AS_BROWSER, FROM_HERE, HERE, SECRET, SIGNS_IN, claims, form_key, served, token
from tests.db.crowd import Crowd
from tests.support.docker import ROOT
from tests.support.receivers import listening
from tests.support.scripts import environ_of
from worker.cli.parser import parse
from worker.console import auth
from worker.console.command import check
from worker.console.guard import HEADERS
from worker.errors import ConfigurationError

ANY = uuid.UUID("11111111-2222-4333-8444-555555555555")
PAST = datetime.now(UTC) - timedelta(minutes=5)
OTHER = "another secret that is long enough for HS256, too"
PRIVATE = ec.generate_private_key(ec.SECP256R1())
PUBLIC = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def unsigned(user: uuid.UUID) -> str:
    return jwt.encode(claims(user), "", "none")


def forged(user: uuid.UUID) -> str:
    """A valid token whose subject was changed afterwards."""
    head, body, signature = token(ANY).split(".")
    changed = json.loads(base64.urlsafe_b64decode(body + "==")) | {"sub": str(user)}
    return f"{head}.{base64.urlsafe_b64encode(json.dumps(changed).encode()).decode().rstrip('=')}.{signature}"


def signed_with_the_public_key(user: uuid.UUID) -> str:
    """The public key as if it were a secret: the confusion of two algorithms."""
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"one"}').decode().rstrip("=")
    body = token(user).split(".")[1]
    signature = base64.urlsafe_b64encode(hmac.digest(PUBLIC, f"{head}.{body}".encode(), "sha256")).decode().rstrip("=")
    return f"{head}.{body}.{signature}"


BAD: dict[str, Any] = {
    "expired": lambda user: token(user, exp=PAST),
    "another secret": lambda user: token(user, OTHER),
    "no signature": unsigned,
    "forged": forged,
    "another audience": lambda user: token(user, aud="anon"),
    "no audience": lambda user: token(user, aud=None),
    "never expires": lambda user: token(user, exp=None),
    "not yet valid": lambda user: token(user, nbf=datetime.now(UTC) + timedelta(hours=1)),
    "service role": lambda user: token(user, role="service_role"),
    "no user": lambda _: token("admin"),
    "another algorithm": lambda user: token(user, algorithm="HS512"),
    "a public key as a secret": signed_with_the_public_key,
    "too long": lambda user: token(user, more="x" * 4000),
    "nonsense": lambda _: "a.b.c",
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_token_is_refused(crowd: Crowd, console_url: str, tmp_path: Path, name: str) -> None:
    bad = BAD[name](crowd.users["owner"])
    async with served(console_url, *SIGNS_IN, "--jwks", str(keys_file(tmp_path))) as client:
        key = await form_key(client)
        by_header = await client.get("/runs/acme/1", headers={"Authorization": f"Bearer {bad}"})
        by_form = await client.post("/sign-in", data={"token": bad, "form_key": key}, headers=FROM_HERE)
        client.cookies.set("ops_session", bad)
        by_cookie = await client.get("/runs/acme/1")
    assert (by_header.status_code, by_form.status_code, by_cookie.status_code) == (401, 401, 401)
    assert "ops_session" not in by_form.headers.get("set-cookie", "")
    assert bad not in by_header.text + by_form.text + by_cookie.text


def keys_file(folder: Path, *more: dict[str, Any]) -> Path:
    key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(PRIVATE.public_key())) | {"kid": "one", "alg": "ES256"}
    file = folder / "keys.json"
    file.write_text(json.dumps({"keys": [key, *more]}))
    return file


async def test_public_keys_of_a_file_verify_tokens(crowd: Crowd, console_url: str, tmp_path: Path) -> None:
    big = rsa.generate_private_key(65537, 2048)
    more = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(big.public_key())) | {"kid": "two", "alg": "RS256"}
    shared = {"kty": "oct", "kid": "three", "alg": "HS256", "k": base64.urlsafe_b64encode(SECRET.encode()).decode()}
    user = claims(crowd.users["viewer"])
    async with served(console_url, "--jwks", str(keys_file(tmp_path, more, shared))) as client:
        for key, algorithm, name, status in (
            (PRIVATE, "ES256", "one", 200), (big, "RS256", "two", 200), (big, "RS256", "one", 401),
            (PRIVATE, "ES256", "four", 401), (SECRET, "HS256", "three", 401), (big, "PS256", "two", 401),
        ):  # fmt: skip
            written = jwt.encode(user, key, algorithm, headers={"kid": name})
            done = await client.get("/runs/acme/1", headers={"Authorization": f"Bearer {written}"})
            assert (algorithm, name, done.status_code) == (algorithm, name, status)


class Redirecting(BaseHTTPRequestHandler):
    """Answers with a redirect to a document of keys."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/keys" else 302)
        self.send_header("Location", "/keys")
        self.end_headers()
        self.wfile.write(b'{"keys": []}')


def test_a_redirect_is_not_followed_to_the_keys() -> None:
    with listening(Redirecting) as port:
        assert auth._bytes_of(f"http://127.0.0.1:{port}/keys") == b'{"keys": []}'
        with pytest.raises(HTTPError, match="302"):
            auth._bytes_of(f"http://127.0.0.1:{port}/moved")


async def test_keys_behind_a_url_are_read_again_for_an_unknown_one(
    crowd: Crowd, console_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, new = keys_file(tmp_path), ec.generate_private_key(ec.SECP256R1())
    serve = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with listening(serve) as port:
        async with served(console_url, "--jwks", f"http://127.0.0.1:{port}/{file.name}") as client:

            async def status(key: ec.EllipticCurvePrivateKey, name: str) -> int:
                written = jwt.encode(claims(crowd.users["viewer"]), key, "ES256", headers={"kid": name})
                done = await client.get("/runs/acme/1", headers={"Authorization": f"Bearer {written}"})
                return done.status_code

            added = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(new.public_key())) | {"kid": "new", "alg": "ES256"}
            keys_file(tmp_path, added)
            assert [await status(PRIVATE, "one"), await status(new, "new")] == [200, 401]  # asked a moment ago
            monkeypatch.setattr(auth, "UNKNOWN_KEY_SECONDS", 0)
            assert await status(new, "new") == 200
            file.write_text("not keys")
            assert [await status(PRIVATE, "none"), await status(new, "new")] == [401, 200]  # those of before stay


async def test_a_token_is_kept_in_a_cookie_that_no_script_reads(crowd: Crowd, console_url: str) -> None:
    async with served(console_url, *SIGNS_IN) as client:
        away = await client.get("/runs/acme/1?from=7", headers=AS_BROWSER)
        assert (away.status_code, away.headers["location"]) == (303, "/sign-in?next=/runs/acme/1%3Ffrom%3D7")
        fields = {"token": f" {token(crowd.users['viewer'])}\n", "next": "/runs/acme/1?from=7"}
        fields["form_key"] = await form_key(client)
        done = await client.post("/sign-in", data=fields, headers=FROM_HERE)
        cookie = done.headers["set-cookie"]
        assert done.headers["location"] == "/runs/acme/1?from=7"
        assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(cookie.split("; "))
        assert (await client.get("/runs/acme/1")).status_code == 200
        assert (await client.post("/sign-out", data=fields, headers=FROM_HERE)).status_code == 303
        assert (await client.get("/runs/acme/1")).status_code == 401


async def test_with_tls_the_cookies_belong_to_this_host_only(crowd: Crowd, console_url: str) -> None:
    async with served(console_url, *SIGNS_IN, "--public-url", "https://console.example") as client:
        page = await client.get("/sign-in")
        assert "__Host-ops_form=" in page.headers["set-cookie"]
        assert {"Secure", "HttpOnly", "SameSite=strict"} <= set(page.headers["set-cookie"].split("; "))
        assert page.headers["strict-transport-security"]
        wrong = await client.post("/sign-in", headers=AS_BROWSER | {"Origin": "http://console.example"})
        assert wrong.status_code == 403


@pytest.mark.parametrize(
    "target",
    ["https://evil.example/", "//evil.example/", "/\\evil.example/", "/x\\y", "evil", "/\t/evil.example", "/sign-out"],
)
async def test_a_sign_in_leads_to_no_other_site(crowd: Crowd, console_url: str, target: str) -> None:
    async with served(console_url, *SIGNS_IN) as client:
        fields = {"token": token(crowd.users["viewer"]), "next": target, "form_key": await form_key(client)}
        assert (await client.post("/sign-in", data=fields, headers=FROM_HERE)).headers["location"] == "/"


async def test_a_link_on_another_site_does_not_sign_the_user_out(crowd: Crowd, console_url: str) -> None:
    """The browser sends no cookie with it, since that is strict; the page then leads to itself."""
    async with served(console_url, *SIGNS_IN) as client:
        page = await client.get('/runs/acme/1?x="><b>', headers=AS_BROWSER | {"Sec-Fetch-Site": "cross-site"})
    assert page.status_code == 200
    assert 'http-equiv="refresh" content="0;url=/runs/acme/1?x=%22%3E%3Cb%3E"' in page.text


# --- a proxy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "name", "status"),
    [
        ("10.1.2.3", "ada", 200), ("::ffff:10.1.2.3", "ada", 200), ("10.1.2.3", "{viewer}", 200),
        ("10.9.9.9", "ada", 401),
        ("127.0.0.1", "ada", 401), ("10.1.2.3", "bob", 401), ("10.1.2.3", "", 401), ("10.1.2.3", "{stranger}", 404),
    ],
)  # fmt: skip
async def test_the_header_of_a_trusted_proxy_names_the_user(
    crowd: Crowd, console_url: str, tmp_path: Path, peer: str, name: str, status: int
) -> None:
    users = tmp_path / "users"
    users.write_text(f"# who is who\nada {crowd.users['viewer']}\n")
    words = ("--trusted-proxies", "10.1.0.0/16,fd00::1", "--users-file", str(users), "--user-header", "X-User")
    async with served(console_url, *words, peer=peer) as client:
        done = await client.get(
            "/runs/acme/1", headers={"X-User": name.format(**crowd.users), "X-Forwarded-For": "10.1.2.3"}
        )
        assert done.status_code == status
        if status == 200:  # the proxy adds its header to every request of the browser, so a form needs its key
            assert (
                await client.post("/runs/acme/1/cancel", headers={"X-User": name.format(**crowd.users)})
            ).status_code == 403


# --- every response -------------------------------------------------------------------------------------------------


async def test_every_response_has_the_headers(crowd: Crowd, console_url: str) -> None:
    async with served(console_url, *SIGNS_IN) as client:
        for path in ("/", "/sign-in", "/static/run.js", "/static/none", "/healthz", "/runs/acme/1/log", "/no"):
            done = await client.get(path, headers=AS_BROWSER)
            assert {name: done.headers.get(name) for name in HEADERS} == HEADERS, path
            assert "unsafe" not in done.headers["content-security-policy"]
        assert (await client.get("/static/../app.py")).status_code == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("console.example", 200), ("localhost:8090", 200), ("[::1]:8090", 200), ("evil.example", 421), ("", 421),
        ("127.0.0.1.evil.example", 421),
    ],
)  # fmt: skip
async def test_only_the_names_of_the_console_lead_to_it(crowd: Crowd, console_url: str, host: str, status: int) -> None:
    """So that a foreign name which resolves to this address cannot use what a user may."""
    async with served(console_url, *SIGNS_IN, "--public-url", "https://console.example") as client:
        assert (await client.get("/healthz", headers={"Host": host})).status_code == status


async def test_without_a_sign_in_the_login_of_the_database_acts(crowd: Crowd, db_url: str) -> None:
    async with served(db_url) as client:
        assert (await client.get("/runs/acme/1", headers=AS_BROWSER)).status_code == 200
        assert (await client.get("/runs/acme/1", headers={"Host": "evil.example"})).status_code == 421
        assert (await client.post("/runs/acme/1/cancel", headers={"Origin": "http://evil.example"})).status_code == 403
        done = await client.post(
            "/runs/acme/1/cancel", data={"form_key": await form_key(client)}, headers={"Origin": HERE}
        )
        assert done.status_code == 303


# --- what it does not start with ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--listen", "0.0.0.0:8090"], "listen"), (["--listen", ":8090"], "listen"),
        (["--listen", "10.0.0.1:8090"], "listen"),
        (["--listen", "console.example:8090"], "listen"), (["--listen", "[::]:8090"], "listen"),
        (["--listen", ":8090", *SIGNS_IN], "public_url"), (["--listen", "127.0.0.2:8090"], None), ([], None),
        (["--listen", "[::1]:8090"], None),
        (["--listen", ":8090", *SIGNS_IN, "--public-url", "https://c.example"], None),
        (["--listen", ":80", "--trusted-proxies", "10.0.0.1", "--public-url", "https://c.example"], None),
    ],
)  # fmt: skip
def test_without_a_sign_in_it_listens_on_the_loopback_address_only(words: list[str], field: str | None) -> None:
    settings = parse(["console", *words], {}).settings
    if field is None:
        check(settings)
        return
    with pytest.raises(ConfigurationError) as refused:
        check(settings)
    assert refused.value.field == field


async def test_a_login_with_rights_of_its_own_is_refused(crowd: Crowd, db_url: str, console_url: str) -> None:
    await crowd.world.db.execute(
        "create role ops_inherits login in role service_role, authenticated; create role ops_none login"
    )
    for name, why in (
        ("postgres", "operator's rights"),
        ("ops_inherits", "operator's rights"),
        ("ops_none", "cannot act for users"),
    ):
        with pytest.raises(ConfigurationError, match=f"database_url: .*{why}"):
            async with served(db_url.replace("postgres@", f"{name}@"), *SIGNS_IN):
                pass


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--jwks", "http://keys.example/jwks.json"], "jwks"), (["--jwks", "{folder}/none"], "jwks"),
        (["--jwks", "{folder}/empty"], "jwks"), ([*SIGNS_IN, "--users-file", "{folder}/empty"], "users_file"),
        ([*SIGNS_IN, "--users-file", "{folder}/none"], "users_file"),
    ],
)  # fmt: skip
async def test_a_wrong_file_is_named(console_url: str, tmp_path: Path, words: list[str], field: str) -> None:
    (tmp_path / "empty").write_text('{"keys": []}')
    with pytest.raises(ConfigurationError) as refused:
        async with served(console_url, *(word.format(folder=tmp_path) for word in words)):
            pass
    assert refused.value.field == field


def test_the_extra_that_is_missing_is_named() -> None:
    program = "import sys; sys.modules['starlette'] = None; from worker.__main__ import main; main()"
    words = ["console", "--database-url", "postgresql://nowhere.example/ops"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, env=environ_of(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "ops-worker: console: the package starlette is not installed; it is in the extra:"
        " pip install 'ops-worker[console]'\n"
    )


def test_no_other_command_imports_the_extra() -> None:
    program = """import sys
for name in ("jinja2", "jwt", "starlette", "uvicorn"): sys.modules[name] = None
import worker.__main__, worker.cli.startup, worker.cli.runs, worker.cli.doctor"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
