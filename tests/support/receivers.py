"""A chat or forge (HTTP) and a mail server (SMTP) of the tests' own, with TLS if a test wants it."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.debian import unpacked

SILENCE = 0
"""In place of a status: no answer until the server ends."""
DRIP = -1
"""In place of a status: an answer of which a byte comes now and then, and which never ends."""

SLOW = -2
"""In place of a status: 200, a while later."""


@dataclass(frozen=True)
class Certificate:
    """A certificate for ``localhost`` that signs itself, and its key."""

    file: Path

    @property
    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file)
        return context


def new_certificate(folder: Path) -> Certificate:
    program = shutil.which("openssl") or str(unpacked("openssl") / "usr/bin/openssl")
    file = folder / "localhost.pem"
    subprocess.run(
        [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "9",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", file, "-out", f"{file}.crt"],
        capture_output=True, check=True,
    )  # fmt: skip
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return Certificate(file)


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def delivery_id(self) -> str:
        return self.headers["x-ops-delivery"]


@dataclass
class Web:
    """What it got, and what it answers next: statuses, 200 behind the last."""

    url: str
    answers: list[int] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)
    text: str = ""
    """The body of each answer."""


class _Handler(BaseHTTPRequestHandler):
    web: Web

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.web.requests.append(Request(self.path, headers, body))
        status = self.web.answers.pop(0) if self.web.answers else 200
        if status == SILENCE:
            self.web.ending.wait()
            return
        if status == SLOW:
            status = 200
            self.web.ending.wait(1)
        if status == DRIP:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            with suppress(OSError):
                while not self.web.ending.wait(0.05):
                    self.wfile.write(b"X")
            return
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("location", f"{self.web.url}/elsewhere")
        self.send_header("content-length", str(len(self.web.text)))
        self.end_headers()
        self.wfile.write(self.web.text.encode())

    def log_message(self, *_: object) -> None:
        """It writes nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that breaks the connection is no error of the server."""


@contextmanager
def listening(handler: Callable[..., BaseHTTPRequestHandler], certificate: Certificate | None = None) -> Iterator[int]:
    """The port of an HTTP server on the loopback, whose requests this handler answers."""
    with _Server(("127.0.0.1", 0), handler) as server:
        if certificate is not None:
            server.socket = certificate.server.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def web(certificate: Certificate | None = None) -> Iterator[Web]:
    """An HTTP server on a free port of the loopback."""
    made = Web("")
    with listening(type("Handler", (_Handler,), {"web": made}), certificate) as port:
        made.url = f"http{'s' if certificate else ''}://localhost:{port}"
        try:
            yield made
        finally:
            made.ending.set()


@dataclass(frozen=True)
class Letter:
    sender: str
    to: list[str]
    message: Message
    secure: bool
    login: str
    """User and password, with a colon between."""


@dataclass
class Post:
    """A mail server: what it got, and how it answers a word such as ``RCPT`` or ``DATA``, in place of accepting."""

    port: int = 0
    letters: list[Letter] = field(default_factory=list)
    refusals: dict[str, bytes] = field(default_factory=dict)
    greeting: bytes = b"220 ready"


class _Session:
    def __init__(self, post: Post, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                 tls: ssl.SSLContext | None, *, secure: bool) -> None:  # fmt: skip
        self.post, self.reader, self.writer, self.tls, self.secure = post, reader, writer, tls, secure
        self.sender, self.to, self.login = "", list[str](), ""

    async def serve(self) -> None:
        self._say(self.post.greeting)
        while line := await self.reader.readline():
            word, _, rest = line.decode().strip().partition(" ")
            refusal = next(
                (self.post.refusals[key] for key in (line.decode().strip(), word) if key in self.post.refusals), None
            )
            if refusal is not None:
                self._say(refusal)
            elif not await self._obey(word.upper(), rest):
                return

    def _say(self, *lines: bytes) -> None:
        self.writer.write(b"".join(line + b"\r\n" for line in lines))

    async def _obey(self, word: str, rest: str) -> bool:
        """Carries out one line; returns whether the session goes on."""
        if word == "EHLO":
            offers = [] if self.secure or self.tls is None else [b"250-STARTTLS"]
            self._say(b"250-localhost", *offers, b"250 AUTH PLAIN")
        elif word == "STARTTLS" and self.tls is not None:
            self._say(b"220 go on")
            await self.writer.start_tls(self.tls)
            self.secure = True
        elif word == "AUTH":
            _, user, password = base64.b64decode(rest.split()[1]).decode().split("\0")
            self.login = f"{user}:{password}"
            self._say(b"235 welcome")
        elif word == "MAIL":
            self.sender = rest.partition("<")[2].partition(">")[0]
            self._say(b"250 ok")
        elif word == "RCPT":
            self.to.append(rest.partition("<")[2].partition(">")[0])
            self._say(b"250 ok")
        elif word == "DATA":
            self._say(b"354 go on")
            text = (await self.reader.readuntil(b"\r\n.\r\n"))[:-3]
            self.post.letters.append(Letter(self.sender, self.to, message_from_bytes(text), self.secure, self.login))
            self._say(b"250 taken")
        else:
            self._say(b"221 bye" if word == "QUIT" else b"250 ok")
        return word != "QUIT"


@asynccontextmanager
async def mail_server(certificate: Certificate | None = None, *, implicit: bool = False) -> AsyncIterator[Post]:
    """An SMTP server on a free port of the loopback. With a certificate it offers STARTTLS, or begins with TLS."""
    made = Post()
    tls = None if certificate is None else certificate.server

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await _Session(made, reader, writer, tls, secure=implicit).serve()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls if implicit else None) as server:
        made.port = server.sockets[0].getsockname()[1]
        yield made
