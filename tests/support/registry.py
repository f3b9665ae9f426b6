"""A small image registry that speaks the real protocol (v2, basic authentication), over HTTP on 127.0.0.1."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import platform
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.docker import docker

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
INIT = ["/sbin/docker-init", "--version"]
"""The command of a run: the images have no program, and this one is the engine's, and static."""
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass
class Registry:
    """Its images and the requests it got; an image has one layer with one file, and no program."""

    user: str
    password: str
    address: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    layers: set[str] = field(default_factory=set)
    breaking: int = 0
    """How many more downloads of a layer break off in their middle."""
    halfway: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released by each download of a layer that has come to its middle."""
    flowing: threading.Event = field(default_factory=threading.Event)
    """While it is not set, downloads of layers stop in their middle, or drip."""
    dripping: bool = False
    """Whether layers come byte by byte."""
    silent: bool = False
    """Whether requests of manifests are not answered while ``flowing`` is not set."""
    abandoned: threading.Event = field(default_factory=threading.Event)
    """Set when a client hangs up on such a layer."""

    def __post_init__(self) -> None:
        self.flowing.set()

    def push(self, name: str, tag: str, note: str = "", content: bytes = b"") -> str:
        """Adds an image and returns its digest."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            file = tarfile.TarInfo("file")
            file.size = len(content)
            tar.addfile(file, io.BytesIO(content))
        layer = buffer.getvalue()
        config = {
            "architecture": _MACHINES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Labels": {"note": note}},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
        compressed = gzip.compress(layer, mtime=0)
        self.layers.add(_digest(compressed))
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._add(json.dumps(config).encode(), CONFIG),
            "layers": [self._add(compressed, LAYER)],
        }
        digest = str(self._add(json.dumps(manifest).encode(), MANIFEST)["digest"])
        self.tags[f"{name}:{tag}"] = digest
        return digest

    def _add(self, data: bytes, media_type: str) -> dict[str, object]:
        self.blobs[_digest(data)] = data
        return {"mediaType": media_type, "size": len(data), "digest": _digest(data)}

    def answer(self, path: str, authorization: str) -> tuple[HTTPStatus, bytes, dict[str, str]]:
        expected = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        if authorization != f"Basic {expected}":
            self.refused.append(path)
            error = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
            challenge = {"WWW-Authenticate": 'Basic realm="tests"', "Content-Type": "application/json"}
            return HTTPStatus.UNAUTHORIZED, json.dumps(error).encode(), challenge
        self.served.append(path)
        if path == "/v2/":
            return HTTPStatus.OK, b"{}", {"Content-Type": "application/json"}
        name, kind, reference = path.removeprefix("/v2/").rsplit("/", 2)
        if self.silent and kind == "manifests":
            self.halfway.release()
            self.flowing.wait()
        digest = self.tags.get(f"{name}:{reference}", reference) if kind == "manifests" else reference
        if digest not in self.blobs:
            error = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            return HTTPStatus.NOT_FOUND, json.dumps(error).encode(), {"Content-Type": "application/json"}
        media_type = MANIFEST if kind == "manifests" else "application/octet-stream"
        return HTTPStatus.OK, self.blobs[digest], {"Content-Type": media_type, "Docker-Content-Digest": digest}

    def may_resume(self) -> bool:
        """Asked in the middle of a layer."""
        self.halfway.release()
        self.flowing.wait()
        self.breaking -= 1
        return self.breaking < 0

    def drip(self, sink: io.BufferedIOBase, body: bytes) -> None:
        """Sends it byte by byte, never all of it."""
        self.halfway.release()
        try:
            for place in range(len(body) - 1):
                sink.write(body[place : place + 1])
                if self.flowing.wait(0.02):
                    return
        except ConnectionError:
            self.abandoned.set()


def client_config(folder: Path, registry: Registry, password: str) -> str:
    """A folder with the engine client's file, as `docker login` writes it."""
    login = base64.b64encode(f"{registry.user}:{password}".encode()).decode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": login}}}))
    return str(folder)


@contextmanager
def serving(registry: Registry) -> Iterator[Registry]:
    """Serves it while the block goes on; its ``address`` is where."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        default_request_version = "HTTP/1.0"
        """Its answer to TLS has a status line then, by which containerd knows that it speaks plain HTTP."""

        def do_GET(self) -> None:
            status, body, headers = registry.answer(self.path, self.headers.get("Authorization", ""))
            if wanted := self.headers.get("Range"):
                first = int(wanted.removeprefix("bytes=").partition("-")[0])
                headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
                status, body = HTTPStatus.PARTIAL_CONTENT, body[first:]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET" and self.path.rpartition("/")[2] in registry.layers:
                self.send_layer(body)
            elif self.command == "GET":
                self.wfile.write(body)

        def send_layer(self, body: bytes) -> None:
            middle = len(body) // 2
            self.close_connection = True
            if registry.dripping:
                registry.drip(self.wfile, body)
                return
            with suppress(ConnectionError):  # the engine may have given up
                self.wfile.write(body[:middle])
                if registry.may_resume():
                    self.wfile.write(body[middle:])
                    self.close_connection = False

        do_HEAD = do_GET  # noqa: N815 - the base class's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        registry.address = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield registry
        finally:
            registry.flowing.set()
            server.shutdown()
            thread.join()


@contextmanager
def registry_with_images_removed(password: str) -> Iterator[Registry]:
    """A registry for the user ``builder``; what the engine pulled from it is removed at the end."""
    with serving(Registry("builder", password)) as started:
        yield started
        images = docker("images", "-q", "--filter", f"reference={started.address}/*/*").split()
        if images:
            docker("rmi", "-f", *images)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
