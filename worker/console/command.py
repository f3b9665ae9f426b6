"""The command ``ops-worker console``: checks its settings, connects, and serves until a signal.

The packages of the extra are imported when the command runs, so no other command needs them.
"""

from __future__ import annotations

import ipaddress
import signal
import socket

import structlog

from worker.cli.commands import Invocation
from worker.cli.settings import Settings
from worker.errors import ConfigurationError, OpsError
from worker.model.serve import published_url

EXTRA = frozenset({"jinja2", "jwt", "cryptography", "starlette", "uvicorn"})
LISTEN = ("127.0.0.1", 8090)
CLOSE_SECONDS = 3
MOST_CONNECTIONS = 1000
MOST_HEADERS = 32_768
log = structlog.get_logger()


async def console(call: Invocation) -> int:
    """Serves the console until SIGTERM or SIGINT."""
    check(call.settings)
    try:
        from worker.console.app import opened  # noqa: PLC0415 - the extra
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        problem = f"the package {package} is not installed; it is in the extra: pip install 'ops-worker[console]'"
        raise OpsError(f"console: {problem}") from error
    import uvicorn  # noqa: PLC0415 - the extra

    from worker.console.protocol import Impatient  # noqa: PLC0415 - the extra

    host, port = call.settings.listen or LISTEN
    async with opened(call.settings) as app:
        options = uvicorn.Config(
            app, log_config=None, access_log=False, proxy_headers=False, server_header=False, lifespan="off",
            http=Impatient, ws="none", limit_concurrency=MOST_CONNECTIONS, h11_max_incomplete_event_size=MOST_HEADERS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )  # fmt: skip
        with _listening(host, port) as listener:
            for number in (signal.SIGTERM, signal.SIGINT):  # the server raises them again once it has closed
                signal.signal(number, lambda *_: None)
            log.info("console listens", url=call.settings.public_url or published_url(host, port))
            await uvicorn.Server(options).serve([listener])
    return 0


def check(settings: Settings) -> None:
    """Raises ``ConfigurationError`` if the console would be open to the network without a sign-in or a name."""
    host = (settings.listen or LISTEN)[0]
    signs_in = settings.jwt_secret is not None or settings.jwks is not None or bool(settings.trusted_proxies)
    if _is_loopback(host):
        return
    if not signs_in:
        problem = (
            f"{host} is not a loopback address, and no user has to sign in; expected --jwt-secret, --jwks or"
            " --trusted-proxies as well, or an address such as 127.0.0.1:8090"
        )
        raise ConfigurationError("listen", problem)
    if settings.public_url is None:
        raise ConfigurationError("public_url", f"required, since the console listens on {host}, beyond this host")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    """The socket that the console listens on. Raises ``OpsError``."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise OpsError(f"--listen: cannot listen on {host}:{port}: {error.strerror or error}") from error
