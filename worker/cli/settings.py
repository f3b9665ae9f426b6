"""Every setting of the worker, declared once.

A setting is a flag, an environment variable and a line of an env file: ``--poll-interval`` is
``OPS_WORKER_POLL_INTERVAL``. :mod:`worker.cli.parser` reads them.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from worker.errors import ConfigurationError
from worker.model.container import check_engine_address
from worker.model.images import check_pattern
from worker.model.serve import check_serve_address, check_serve_url
from worker.model.service import MAX_SERVICES
from worker.model.sizes import Size
from worker.model.spec import Bound, HostPolicy
from worker.model.volume import check_volume_pattern

PREFIX = "OPS_WORKER_"
GENERAL_URL = "DATABASE_URL"
"""The variable that the worker reads for the database if ``OPS_WORKER_DATABASE_URL`` is not set."""

FLAG_ONLY = frozenset({"version", "dry_run", "remove_volumes", "yes"})
"""Settings that have no variable."""

MIN_LEASE, DEFAULT_LEASE, MAX_LEASE = 15, 300, 3600
"""Seconds. The database refuses a longer lease."""

LEAST_SECRET = 32
"""Bytes of a secret that signs tokens: as many as HS256 has."""

_MAX_PORT = 65_535
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_HOST = HostPolicy()


def _words(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(word for part in value.split(",") if (word := part.strip()))


def _address(value: object) -> object:
    if not isinstance(value, str) or not value:
        return value or None
    host, colon, port = value.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or not 0 < int(port) <= _MAX_PORT:
        raise ValueError("expected host:port, such as 127.0.0.1:9464")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - :9464 means every address


def _database_url(value: SecretStr) -> SecretStr:
    url = urlsplit(value.get_secret_value())
    ports = [
        host.rpartition(":")[2] for host in url.netloc.rpartition("@")[2].split(",") if re.search(r":[^]]*$", host)
    ]
    modes = parse_qs(url.query).get("sslmode", [])
    if url.scheme not in ("postgresql", "postgres"):
        raise ValueError("expected postgresql://user:password@host/database")
    if any(not port.isdecimal() or not 0 < int(port) <= _MAX_PORT for port in ports):
        raise ValueError("expected a port from 1 to 65535")
    if any("=" not in field for field in url.query.split("&") if url.query):
        raise ValueError("expected name=value behind the question mark")
    if any(mode not in _SSL_MODES for mode in modes):
        raise ValueError(f"expected an sslmode out of {', '.join(_SSL_MODES)}")
    return value


def _secret(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value().encode()) < LEAST_SECRET:
        raise ValueError(f"expected at least {LEAST_SECRET} bytes")
    return value


def _public_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname or url.username or url.path.strip("/") or url.query:
        raise ValueError("expected https://host without a path, such as https://console.example")
    return f"{url.scheme}://{url.netloc.lower()}"


def _networks(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        try:
            ipaddress.ip_network(word)
        except ValueError:
            raise ValueError("expected addresses or networks such as 10.0.0.5,10.1.0.0/16") from None
    return words


def _header(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", value) or value.lower() in ("authorization", "cookie", "host"):
        raise ValueError("expected the name of a header such as X-Forwarded-User")
    return value


def _collector(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http://host:4318 or https://host/path")
    return url if parts.path.strip("/") else parts._replace(path="/v1/traces").geturl()


def _image_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(check_pattern, patterns))


def _volume_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(check_volume_pattern, patterns))


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
VolumePatterns = Annotated[Words, AfterValidator(_volume_patterns)]
ImagePatterns = Annotated[Words, AfterValidator(_image_patterns)]
Address = Annotated[tuple[str, int] | None, NoDecode, BeforeValidator(_address)]
Seconds = Annotated[float, Field(gt=0)]
Cores = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Services = Annotated[int, Field(ge=0, le=MAX_SERVICES)]
ServeAddress = Annotated[str, AfterValidator(check_serve_address)]
ServeUrl = Annotated[str | None, AfterValidator(check_serve_url)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url)]
SigningSecret = Annotated[SecretStr, AfterValidator(_secret)]
PublicUrl = Annotated[str, AfterValidator(_public_url)]
Networks = Annotated[Words, AfterValidator(_networks)]
Header = Annotated[str, AfterValidator(_header)]
Collector = Annotated[str | None, AfterValidator(_collector)]
DockerHost = Annotated[str | None, AfterValidator(check_engine_address)]


def _setting(default: Any, metavar: str, description: str, **constraints: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"metavar": metavar}, **constraints)


class Settings(BaseSettings):
    """Runs the workflows of ops.runs in Docker until it is told to stop."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
    )

    env_file: Path | None = _setting(None, "FILE", "lines of OPS_WORKER_NAME=value")
    version: bool = _setting(False, "", "show the version and exit")

    database_url: DatabaseUrl | None = _setting(
        None, "URL", "the control plane: postgresql://user:password@host/database"
    )
    worker_id: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        description="the same after each restart (default: the host's name)",
        json_schema_extra={"metavar": "NAME"},
    )
    concurrency: int = _setting(2, "N", "how many runs at once", ge=1, le=500)
    labels: Words = _setting((), "A,B", "labels that this host offers; a run may ask for these only")
    lease: int = _setting(
        DEFAULT_LEASE, "SECONDS", "after which the runs of a silent worker are given up", ge=MIN_LEASE, le=MAX_LEASE
    )
    poll_interval: Seconds = _setting(5.0, "SECONDS", "between two polls of the queue")
    until_idle: bool = _setting(False, "", "exit once the queue holds nothing for this worker")
    drain_timeout: Seconds | None = _setting(None, "SECONDS", "that runs may still take after the first signal")

    docker_host: DockerHost = _setting(None, "URL", "the engine; unset: DOCKER_HOST, else Docker's own default")
    allowed_images: ImagePatterns = _setting(_HOST.allowed_images, "A,B", "patterns of image names that may run here")
    allowed_networks: Words = _setting(_HOST.allowed_networks, "A,B", "that a workflow may choose")
    allowed_volumes: VolumePatterns = _setting(
        _HOST.allowed_volumes, "A,B", "patterns WORKSPACE_KEY/NAME of volumes that stay; unset: none"
    )
    read_only_root: bool = _setting(_HOST.read_only_root, "", "read-only root file systems for all runs")
    max_services: Services = _setting(_HOST.max_services, "N", "that a run may have; 0: none")
    max_served: int = _setting(_HOST.max_served, "N", "how many served runs at once; 0: none", ge=0, le=500)
    serve_address: ServeAddress = _setting(_HOST.serve_address, "IP", "where the ports of served runs are published")
    serve_url: ServeUrl = _setting(_HOST.serve_url, "URL", "that a reverse proxy routes, with {slug}, {ref} and {run}")
    secrets_dir: Path | None = _setting(None, "DIR", "secrets for runs: DIR/NAME and DIR/WORKSPACE_KEY/NAME")
    secrets_as_env: bool = _setting(_HOST.secrets_as_env, "", "secrets also as environment variables of the container")
    stop_grace: Seconds = _setting(10.0, "SECONDS", "between SIGTERM and SIGKILL")
    pull_timeout: Seconds = _setting(3600.0, "SECONDS", "that the pull of an image may take")
    pull_idle_timeout: Seconds = _setting(300.0, "SECONDS", "that a pull may last without progress")
    default_timeout: Seconds = _setting(_HOST.timeout.default, "SECONDS", "for a run that sets no limit")
    max_timeout: Seconds | None = _setting(None, "SECONDS", "that a workflow may ask for at most")
    default_ttl: Seconds = _setting(_HOST.ttl.default, "SECONDS", "that a run is served which sets no limit")
    max_ttl: Seconds | None = _setting(None, "SECONDS", "that a workflow may ask to be served for at most")
    default_cpus: Cores = _setting(_HOST.cpus.default, "CORES", "for a run that sets no limit")
    max_cpus: Cores | None = _setting(None, "CORES", "that a workflow may ask for at most")
    default_memory: Size = _setting(_HOST.memory.default, "SIZE", "such as 512m, for a run that sets no limit")
    max_memory: Size | None = _setting(None, "SIZE", "that a workflow may ask for at most")
    default_pids: Count = _setting(_HOST.pids.default, "N", "processes, for a run that sets no limit")
    max_pids: Count | None = _setting(None, "N", "processes that a workflow may ask for at most")
    default_nofile: Count = _setting(_HOST.nofile.default, "N", "open files, for a run that sets no limit")
    max_nofile: Count | None = _setting(None, "N", "open files that a workflow may ask for at most")
    default_output: Size = _setting(_HOST.output.default, "SIZE", "of printed text, for a run that sets no limit")
    max_output: Size | None = _setting(None, "SIZE", "that a workflow may ask for at most")
    default_disk: Size = _setting(_HOST.disk.default, "SIZE", "written to the disk, for a run that sets no limit")
    max_disk: Size | None = _setting(None, "SIZE", "that a workflow may ask for at most")
    max_log: Size = _setting(64 * 2**20, "SIZE", "of stored output per run, and 1 MiB of its end")
    max_cache: Size = _setting(_HOST.max_cache, "SIZE", "of all caches that are kept; the oldest are removed")
    min_free_disk: Size = _setting(2**30, "SIZE", "of free disk below which no run is claimed")
    containerd_root: Path = _setting(Path("/var/lib/containerd"), "DIR", "where containerd keeps its data")

    notify_file: Path | None = _setting(None, "FILE", "TOML: where outcomes of runs are sent; unset: nowhere")

    artifact_store: str = _setting("file:///var/lib/ops-worker/artifacts", "URL", "file:/// or s3://")

    keep_logs: Count | None = _setting(None, "DAYS", "that prune keeps the log of a run after its end")
    keep_events: Count | None = _setting(None, "DAYS", "that prune keeps the events of a run after its end")
    remove_volumes: bool = _setting(False, "", "remove the volumes of archived projects from this engine")
    dry_run: bool = _setting(False, "", "print what would be done; change nothing")

    yes: bool = _setting(False, "", "drop tables without asking")

    listen: Address = _setting(None, "HOST:PORT", "where the console listens; unset: 127.0.0.1:8090")
    public_url: PublicUrl | None = _setting(None, "URL", "of the console in a browser, such as https://console.example")
    jwt_secret: SigningSecret | None = _setting(None, "SECRET", "that signs the tokens of users with HS256")
    jwks: str | None = _setting(None, "URL|FILE", "the public keys of the tokens of users", min_length=1)
    jwt_audience: str = _setting("authenticated", "NAME", "that a token must be for", min_length=1)
    trusted_proxies: Networks = _setting((), "A,B", "addresses of proxies whose user header counts; unset: none")
    user_header: Header = _setting("X-Forwarded-User", "NAME", "in which a trusted proxy names the user")
    users_file: Path | None = _setting(None, "FILE", "lines of NAME UUID: which user a name of the proxy is")

    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "LEVEL", "debug, info, warning or error")
    log_format: Literal["auto", "console", "json"] = _setting(
        "auto", "FORMAT", "console, json, or auto: console on a terminal"
    )
    metrics_address: Address = _setting(None, "HOST:PORT", "where /metrics is served; unset: nowhere")
    traces_endpoint: Collector = _setting(None, "URL", "where traces of runs are sent (OTLP over HTTP); unset: nowhere")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keeps one source: the parser passes flags and all other values itself."""
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)

    @property
    def dsn(self) -> str:
        """The database's URL, with its password. Raises ``ConfigurationError`` if it is not set."""
        if self.database_url is None:
            raise ConfigurationError("database_url", f"required; {GENERAL_URL} counts too")
        return self.database_url.get_secret_value()

    @property
    def policy(self) -> HostPolicy:
        """What this host allows, and what a run gets by default."""
        return HostPolicy(
            allowed_images=self.allowed_images,
            allowed_networks=self.allowed_networks,
            allowed_volumes=self.allowed_volumes,
            read_only_root=self.read_only_root,
            secrets_as_env=self.secrets_as_env,
            max_services=self.max_services,
            max_cache=self.max_cache,
            max_served=self.max_served,
            serve_address=self.serve_address,
            serve_url=self.serve_url,
            ttl=Bound(self.default_ttl, self.max_ttl),
            timeout=Bound(self.default_timeout, self.max_timeout),
            cpus=Bound(self.default_cpus, self.max_cpus),
            memory=Bound(self.default_memory, self.max_memory),
            pids=Bound(self.default_pids, self.max_pids),
            nofile=Bound(self.default_nofile, self.max_nofile),
            output=Bound(self.default_output, self.max_output),
            disk=Bound(self.default_disk, self.max_disk),
        )


def flag(name: str) -> str:
    """The flag of a setting: ``--poll-interval``."""
    return f"--{name.replace('_', '-')}"


def variable(name: str) -> str:
    """The environment variable of a setting: ``OPS_WORKER_POLL_INTERVAL``."""
    return PREFIX + name.upper()


def spelling(name: str) -> str:
    """A setting as an error message names it: its flag, and its variable if it has one."""
    return flag(name) if name in FLAG_ONLY else f"{flag(name)} ({variable(name)})"
