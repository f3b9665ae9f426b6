"""The settings: their values, the policy that follows from them, and what is refused."""

from __future__ import annotations

import socket
from pathlib import Path

import pydantic
import pytest

from tests.unit.cli.lines import load, problems
from worker.cli.commands import COMMANDS, WORK
from worker.cli.settings import FLAG_ONLY, Settings, spelling, variable
from worker.errors import ConfigurationError
from worker.model.spec import Bound, HostPolicy

SIZE = "expected bytes or a size such as 512m or 2g, above 0 and not above 1024t"
VOLUMES = "expected patterns such as acme/filestore, acme/* or *, with a workspace key before the slash"
SLUG = "expected {slug} once, with a dash or a dot beside it, so that no two projects have the same host name"
CONCURRENCY = "expected a whole number of at least 1 and at most 500"
PUBLIC_URL = "expected https://host without a path, such as https://console.example"
NETWORKS = "expected addresses or networks such as 10.0.0.5,10.1.0.0/16"
URL = "postgresql://worker:hunter22@db.example/ops"


def reader(name: str) -> list[str]:
    """The words of a command that reads the setting and needs no argument: of the worker none."""
    bare = (each for each in (WORK, *COMMANDS) if all(argument.startswith("[") for argument in each.arguments))
    return next(list(command.words) for command in bare if name in command.reads)


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    return tmp_path / "worker.env"


def test_nothing_set_is_the_defaults() -> None:
    settings = load([], {})
    assert settings == Settings()
    assert settings.worker_id == socket.gethostname()
    assert (settings.concurrency, settings.lease, settings.poll_interval, settings.stop_grace) == (2, 300, 5.0, 10.0)
    unset = (settings.database_url, settings.docker_host, settings.drain_timeout, settings.metrics_address)
    assert (*unset, settings.traces_endpoint) == (None,) * 5
    networks = ("bridge", "none", "project")
    assert (settings.allowed_images, settings.allowed_networks, settings.labels) == (("*",), networks, ())
    assert settings.artifact_store == "file:///var/lib/ops-worker/artifacts"
    assert not settings.until_idle
    assert settings.policy == HostPolicy()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("worker_id", "build-1", "build-1"), ("concurrency", "4", 4), ("labels", "arm64, big,", ("arm64", "big")),
        ("lease", "60", 60), ("poll_interval", "0.5", 0.5), ("drain_timeout", "120", 120.0),
        ("until_idle", "true", True), ("docker_host", "tcp://10.0.0.1:2376", "tcp://10.0.0.1:2376"),
        ("allowed_images", "odoo:*,registry.example/[ab]*", ("odoo:*", "registry.example/[ab]*")),
        ("allowed_networks", "none", ("none",)), ("read_only_root", "true", True), ("secrets_as_env", "true", True),
        ("max_served", "0", 0), ("serve_address", "10.0.0.5", "10.0.0.5"),
        ("serve_url", "https://{slug}.example", "https://{slug}.example"),
        ("default_ttl", "60", 60.0), ("max_ttl", "7200", 7200.0),
        ("max_services", "0", 0), ("max_cache", "5g", 5 * 2**30),
        ("allowed_volumes", "acme/*, */data,*", ("acme/*", "*/data", "*")),
        ("secrets_dir", "/run/secrets", Path("/run/secrets")), ("stop_grace", "1", 1.0), ("pull_timeout", "90", 90.0),
        ("pull_idle_timeout", "90", 90.0),
        ("default_timeout", "60", 60.0), ("max_timeout", "7200", 7200.0), ("default_cpus", "1.5", 1.5),
        ("max_cpus", "8", 8.0), ("default_memory", "512m", 2**29), ("max_memory", "8 GiB", 2**33),
        ("default_pids", "64", 64), ("max_pids", "2048", 2048), ("default_nofile", "1024", 1024),
        ("max_nofile", "9999", 9999), ("default_output", "1g", 2**30), ("max_output", "4g", 2**32),
        ("default_disk", "5g", 5 * 2**30), ("max_disk", "50g", 50 * 2**30), ("max_log", "8m", 2**23),
        ("min_free_disk", "5g", 5 * 2**30), ("containerd_root", "/data/containerd", Path("/data/containerd")),
        ("notify_file", "/etc/notify.toml", Path("/etc/notify.toml")),
        ("artifact_store", "s3://bucket/prefix", "s3://bucket/prefix"), ("keep_logs", "90", 90),
        ("keep_events", "365", 365), ("log_level", "debug", "debug"), ("log_format", "json", "json"),
        ("metrics_address", "127.0.0.1:9464", ("127.0.0.1", 9464)), ("metrics_address", "[::1]:9464", ("::1", 9464)),
        ("listen", "[::1]:8090", ("::1", 8090)), ("public_url", "https://Console.example/", "https://console.example"),
        ("jwks", "/etc/keys.json", "/etc/keys.json"), ("jwt_audience", "console", "console"),
        ("trusted_proxies", "10.0.0.5, fd00::/8", ("10.0.0.5", "fd00::/8")),
        ("user_header", "Remote-User", "Remote-User"),
        ("users_file", "/etc/users", Path("/etc/users")), ("jwt_secret", "x" * 32, pydantic.SecretStr("x" * 32)),
        ("metrics_address", ":9464", ("0.0.0.0", 9464)),  # noqa: S104 - only read
        ("traces_endpoint", "http://collector:4318", "http://collector:4318/v1/traces"),
        ("traces_endpoint", "https://collector/otlp", "https://collector/otlp"),
    ],
)  # fmt: skip
def test_each_setting_is_a_flag_a_variable_and_a_line_of_a_file(
    name: str, text: str, value: object, env_file: Path
) -> None:
    dashed = f"--{name.replace('_', '-')}"
    env_file.write_text(f"# a comment\nAWS_REGION=eu\n{variable(name)}={text}\n", encoding="utf-8")
    words = reader(name)
    for settings in (
        load([*words, dashed] if value is True else [*words, dashed, text], {}),
        load([], {f"OPS_WORKER_{name.upper()}": text}),
        load(["--env-file", str(env_file)], {}),
        load([], {"OPS_WORKER_ENV_FILE": str(env_file)}),
    ):
        assert getattr(settings, name) == value


def test_every_setting_is_tried_above() -> None:
    [mark] = test_each_setting_is_a_flag_a_variable_and_a_line_of_a_file.pytestmark  # type: ignore[attr-defined]
    tried = {name for name, *_ in mark.args[1]}
    assert tried == Settings.model_fields.keys() - FLAG_ONLY - {"database_url", "env_file"}


@pytest.mark.parametrize("name", HostPolicy().bounds)
def test_bound_of_the_policy_is_two_settings(name: str) -> None:
    assert load([f"--default-{name}", "10", f"--max-{name}", "11"], {}).policy.bounds[name] == Bound(10, 11)
    alone = load([f"--max-{name}", "9"], {}).policy.bounds
    assert alone[name] == Bound(HostPolicy().bounds[name].default, 9)


def test_other_settings_of_the_policy_follow_their_flags() -> None:
    argv = ["--allowed-images", "a", "--allowed-networks", "none", "--read-only-root", "--secrets-as-env"]
    argv += ["--max-served", "2", "--serve-address", "::1", "--serve-url", "http://{slug}.example"]
    policy = load([*argv, "--allowed-volumes", "a/*", "--max-services", "1", "--max-cache", "1m"], {}).policy
    assert policy == HostPolicy(
        ("a",), ("none",), ("a/*",), read_only_root=True, secrets_as_env=True, max_services=1, max_cache=2**20,
        max_served=2, serve_address="::1", serve_url="http://{slug}.example",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("concurrency", "many", f"{CONCURRENCY}, got 'many'"), ("concurrency", "0", f"{CONCURRENCY}, got '0'"),
        ("concurrency", "1.5", f"{CONCURRENCY}, got '1.5'"),
        ("lease", "1", "expected a whole number of at least 15 and at most 3600, got '1'"),
        ("poll_interval", "0", "expected a number above 0, got '0'"),
        ("poll_interval", "inf", "expected a number above 0, got 'inf'"),
        ("drain_timeout", "soon", "expected a number above 0, got 'soon'"),
        ("docker_host", "ssh://build",
         "expected unix:///path or tcp://host:port; for ssh, forward the socket (ssh -L), got 'ssh://build'"),
        ("default_memory", "lots", f"{SIZE}, got 'lots'"), ("max_memory", "0", f"{SIZE}, got '0'"),
        ("allowed_volumes", "data", f"{VOLUMES}, got 'data'"),
        ("max_services", "11", "expected a whole number of at least 0 and at most 10, got '11'"),
        ("max_served", "-1", "expected a whole number of at least 0 and at most 500, got '-1'"),
        ("serve_address", "0.0.0.0",  # noqa: S104 - refused
         "expected one address of the engine's host, such as 127.0.0.1, got '0.0.0.0'"),
        ("serve_url", "https://{ref}.example",
         f"{SLUG}, got 'https://{{ref}}.example'"),
        ("max_pids", "-5", "expected a whole number above 0, got '-5'"),
        ("log_level", "loud", "expected one of 'debug', 'info', 'warning' or 'error', got 'loud'"),
        ("public_url", "console.example", f"{PUBLIC_URL}, got 'console.example'"),
        ("public_url", "https://c.example/x", f"{PUBLIC_URL}, got 'https://c.example/x'"),
        ("jwt_secret", "short", "expected at least 32 bytes"),
        ("trusted_proxies", "10.0.0.5/8", f"{NETWORKS}, got '10.0.0.5/8'"),
        ("user_header", "Cookie", "expected the name of a header such as X-Forwarded-User, got 'Cookie'"),
        ("metrics_address", "9464", "expected host:port, such as 127.0.0.1:9464, got '9464'"),
        ("metrics_address", "localhost:99999", "expected host:port, such as 127.0.0.1:9464, got 'localhost:99999'"),
        ("traces_endpoint", "collector:4318", "expected http://host:4318 or https://host/path, got 'collector:4318'"),
        ("database_url", "mysql://u:hunter22@h/db", "expected postgresql://user:password@host/database"),
        ("database_url", "postgresql://u:hunter22@h:0/db", "expected a port from 1 to 65535"),
        ("database_url", "postgresql://u:1?hunter22@h/db", "expected name=value behind the question mark"),
        ("database_url", "postgresql://u:hunter22@h/db?sslmode=maybe",
         "expected an sslmode out of disable, allow, prefer, require, verify-ca, verify-full"),
        ("worker_id", "", "expected at least 1 character(s), got ''"),
        ("until_idle", "maybe", "expected true or false, got 'maybe'"),
    ],
)  # fmt: skip
def test_bad_value_is_one_line_with_flag_and_variable(name: str, text: str, message: str, env_file: Path) -> None:
    env_file.write_text(f'{variable(name)}="{text}"\n', encoding="utf-8")
    line = f"--{name.replace('_', '-')} (OPS_WORKER_{name.upper()}): {message}"
    if name != "until_idle":  # a switch takes no value on the command line
        assert problems(*reader(name), f"--{name.replace('_', '-')}={text}") == (line,)
    if text:  # an empty variable is not set
        assert problems(**{variable(name): text}) == (line,)
        assert problems("--env-file", str(env_file)) == (line,)


@pytest.mark.parametrize(
    ("name", "default", "most"),
    [
        ("memory", "4g", "1536m"), ("cpus", "2.5", "2"), ("pids", "10", "9"), ("nofile", "10", "9"),
        ("timeout", "60", "59"), ("output", "2g", "1g"), ("disk", "2g", "1g"),
    ],
)  # fmt: skip
def test_default_above_the_maximum_is_refused(name: str, default: str, most: str) -> None:
    line = f"--default-{name} (OPS_WORKER_DEFAULT_{name.upper()}): {default} is more than --max-{name}, {most}"
    assert problems(f"--default-{name}", default, f"--max-{name}", most) == (line,)
    load([f"--default-{name}", most, f"--max-{name}", most], {})


def test_env_file_among_the_secrets_for_runs_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "acme" / "worker.env"
    file.parent.mkdir()
    file.write_text("", encoding="utf-8")
    [line] = problems("--env-file", str(file), "--secrets-dir", f"{tmp_path}/acme/..")
    problem = f"{file} is in --secrets-dir, where every workflow could name it as a secret"
    assert line == f"--env-file (OPS_WORKER_ENV_FILE): {problem}"
    load(["--env-file", str(file), "--secrets-dir", str(tmp_path / "other")], {})


def test_settings_show_no_secret_and_are_frozen() -> None:
    settings = load(["--database-url", URL], {})
    assert settings.dsn == URL
    assert "hunter22" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    with pytest.raises(pydantic.ValidationError):
        settings.concurrency = 5  # type: ignore[misc]
    with pytest.raises(ConfigurationError, match=r"database_url: required; DATABASE_URL counts too"):
        _ = load([], {}).dsn


def test_spelling_is_flag_and_variable() -> None:
    assert spelling("database_url") == "--database-url (OPS_WORKER_DATABASE_URL)"
    assert spelling("version") == "--version"
