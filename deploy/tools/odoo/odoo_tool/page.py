"""The page that visitors get while Odoo does not run."""

from __future__ import annotations

import contextlib
import html
import http.server
import threading
from pathlib import Path

TITLES = {
    "maintenance": "This site is being updated. It will be back in a moment.",
    "recovering": "This site is being updated. It will be back in a moment.",
    "empty": "Nothing is deployed here yet.",
    "starting": "This site is starting. It will be back in a moment.",
    "failing": "This site does not start at the moment.",
}


class Page(http.server.ThreadingHTTPServer):
    """Answers every request with 503."""

    daemon_threads = True

    def __init__(self, port: int, state: str, file: Path) -> None:
        text = html.escape(TITLES.get(state, TITLES["failing"]))
        self.content = f"<!doctype html><meta charset=utf-8><title>{text}</title><h1>{text}</h1>\n".encode()
        with contextlib.suppress(OSError):
            self.content = file.read_bytes()
        super().__init__(("", port), Answer)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Answer(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Page
    protocol_version = "HTTP/1.0"
    timeout = 10

    def answer(self) -> None:
        self.send_response(503)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(self.server.content)))
        self.send_header("Retry-After", "5")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.server.content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = answer  # noqa: N815 - names of the class above

    def log_message(self, *_: object) -> None:
        """Writes no line for each request."""
