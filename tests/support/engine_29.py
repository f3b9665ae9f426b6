"""A relay before the real engine that speaks as Docker Engine 29 does, where that one differs.

What it changes is from the engine's own version history of its API and its release notes: it refuses old versions of
the API, keeps containers in containerd's store, leaves out empty fields and old ones, and gives 1,024 open files.
"""

from __future__ import annotations

import json
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

API, OLDEST = (1, 53), (1, 44)
_NEW_USAGE = (1, 52)


@dataclass
class Engine29:
    """The relay; it listens at ``url``."""

    url: str
    refused: list[str] = field(default_factory=list)
    """The requests that named a version of the API that it does not speak."""


class _Upstream(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, upstream: str) -> None:
        super().__init__(str(path), _Handler)
        self.upstream = upstream
        self.version = _api_version(upstream)
        self.relay = Engine29(f"unix://{path}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        asked = re.fullmatch(r"(?:/v(\d+)\.(\d+))?(/.*)", self.path)
        assert asked is not None
        spoken = (int(asked[1]), int(asked[2])) if asked[1] else API
        if not OLDEST <= spoken <= API:
            self.server.relay.refused.append(self.path)
            message = f"client version {spoken} is too old. Minimum supported API version is 1.44"
            self.answer(HTTPStatus.BAD_REQUEST, {"message": message})
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if asked[3].startswith("/containers/create"):
            body = _asked(body)
        headers = {"Content-Type": self.headers.get("Content-Type", ""), "Content-Length": str(len(body))}
        change = next((its for path, its in _CHANGES.items() if re.match(path, asked[3])), None)
        if change is _usage and spoken < _NEW_USAGE:
            change = None
        with closing(_Upstream(self.server.upstream)) as connection:
            connection.request(self.command, f"/v{self.server.version}{asked[3]}", body, headers)
            with connection.getresponse() as response:
                if change is not None and response.status == HTTPStatus.OK:
                    self.answer(response.status, change(json.loads(response.read()), asked[3]))
                else:
                    self.pass_on(response)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815 - the base class's names

    def answer(self, status: int, facts: Any) -> None:
        body = json.dumps(facts).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def pass_on(self, response: Any) -> None:
        """In chunks, as they come."""
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name not in ("Transfer-Encoding", "Content-Length", "Connection"):
                self.send_header(name, value)
        if response.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            self.end_headers()
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := response.read1(1 << 16):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def engine_29(upstream: str, folder: Path) -> Iterator[Engine29]:
    """The relay to the engine at the Unix socket ``upstream``, for as long as the block lasts."""
    with _Server(folder / "engine-29.sock", upstream) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.relay
        finally:
            server.shutdown()
            thread.join()


def _api_version(upstream: str) -> str:
    with closing(_Upstream(upstream)) as connection:
        connection.request("GET", "/version")
        return str(json.loads(connection.getresponse().read())["ApiVersion"])


def _asked(body: bytes) -> bytes:
    """containerd 2.1.5 leaves open files at the default of systemd."""
    facts = json.loads(body)
    limits = facts["HostConfig"].get("Ulimits") or []
    if "nofile" not in {limit["Name"] for limit in limits}:
        facts["HostConfig"]["Ulimits"] = [*limits, {"Name": "nofile", "Soft": 1024, "Hard": 524_288}]
    return json.dumps(facts).encode()


def _version(facts: Any, _: str) -> Any:
    return {**facts, "Version": "29.0.0", "ApiVersion": "1.53", "MinAPIVersion": "1.44"}


def _info(facts: Any, _: str) -> Any:
    firewall = {"FirewallBackend": {"Driver": "iptables"}}
    store = {"Driver": "overlayfs", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}
    return {**{name: value for name, value in facts.items() if not name.startswith("BridgeNf")}, **store, **firewall}


def _image(facts: Any, _: str) -> Any:
    return {name: value for name, value in facts.items() if name not in ("Config", "ContainerConfig", "VirtualSize")}


def _usage(facts: Any, asked: str) -> Any:
    verbose = "verbose=1" in asked
    return {
        name: {"TotalCount": len(facts[old] or ()), **({"Items": facts[old]} if verbose else {})}
        for name, old in (("ContainerUsage", "Containers"), ("VolumeUsage", "Volumes"))
    }


_CHANGES = {"/version": _version, "/info": _info, r"/images/.*/json": _image, "/system/df": _usage}
