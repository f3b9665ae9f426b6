"""What a tool, a workflow and a run may say; each refusal is one sentence that names the place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.claims import IMAGE, configured, refusal
from worker.errors import SpecError
from worker.model.config import ArtifactRule
from worker.model.spec import HostPolicy, RunSpec, resolve

SIZE = "expected bytes or a size such as 512m or 2g, above 0 and not above 1024t"
NAME = "expected a name of letters, digits and underscores"
NUL = "a NUL character is not possible here"
MOUNT = "expected the absolute path of a folder, such as /var/lib/data"
VOLUME = "expected at most 64 lower-case letters, digits, underscores, dots and dashes"
HOST = "expected a host name of at most 40 lower-case letters, digits and dashes, such as db"
VALUES, TEXT = "expected at most 10,000 values in all", "expected at most 262,144 characters in all"
DEEP: Any = json.loads('{"a": [' * 200 + "1" + "]}" * 200)


def at(key: str, value: object, message: str) -> tuple[dict[str, Any], str]:
    """A configuration with that value at that place, and what is said of it."""
    outer, _, inner = key.partition(".")
    return {outer: {inner: value} if inner else value}, f"{key}: {message}"


def db(**more: Any) -> dict[str, Any]:
    """A service."""
    return {"name": "db", "image": "postgres:16"} | more


@pytest.mark.parametrize(
    ("config", "message"),
    [
        at("comand", ["true"], "unknown key; did you mean command?"), at("privileged", 1, "unknown key"),
        at("resources.memroy", "1g", "unknown key; did you mean memory?"), ({"": 1}, "'': unknown key"),
        at("resources.memory", "lots", f"{SIZE}, got 'lots'"),
        ({"resources": {"memory": True}}, f"resources.memory: {SIZE}, got true"),
        at("resources.memory", "9" * 400, SIZE), at("resources.memory", "1m", "expected at least 6m, got '1m'"),
        at("resources.cpus", 0, "expected at least 0.01, got 0"),
        at("resources.cpus", "2", "expected a number, got '2'"),
        at("resources.pids", 1.5, "expected a whole number, got 1.5"),
        at("resources", None, "expected an object, got null"),
        at("timeout_seconds", "soon", "expected a number, got 'soon'"),
        at("timeout_seconds", -1, "expected more than 0, got -1"),
        at("timeout_seconds", float("inf"), "expected a number, got Infinity"),
        ({"command": ["a\0b"]}, f"command.0: {NUL}"), at("command", "make all", "expected a list, got 'make all'"),
        at("env.A B", "x", NAME), at("env.1A", "x", NAME),
        ({"command": ["make", 5]}, "command.1: expected text, got 5"), ({"env": {"A\n": "x"}}, rf"env.A\n: {NAME}"),
        at("env.OPS_RUN_ID", "1", "names that begin with OPS_ belong to the worker"), at("env.A", "x\0", NUL),
        at("env.A", 12345678, "expected text, got a number"), at("env.A", ["hunter22"], "expected text, got a list"),
        at("env", "hunter22", "expected an object, got text"),
        at("read_only", "yes", "expected true or false, got 'yes'"),
        at("user", "", "expected at least 1 character(s), got ''"),
        ({"network": "host"}, "network 'host' is not one of this host's: bridge, none, project"),
        at("serve", 8069, "expected an object, got 8069"), at("serve.port", 0, "expected at least 1, got 0"),
        ({"serve": {}}, "serve.port: field required"),
        ({"serve": {"port": 80, "prot": 1}}, "serve.prot: unknown key; did you mean port?"),
        ({"serve": {"port": 80, "ttl_seconds": 0}}, "serve.ttl_seconds: expected more than 0, got 0"),
        ({"serve": {"port": 80, "ready_timeout_seconds": 1e6}}, "serve.ready_timeout_seconds: expected at most 86400"),
        ({"serve": {"port": 80, "health": {"pth": "/"}}}, "serve.health.pth: unknown key; did you mean path?"),
        *[({"serve": {"port": 80, "health": {"path": path}}},
           "serve.health.path: expected the path of a URL, such as /web/health")
          for path in ("up", "", "/a b", "/x\r\nHost: y", "/\u00e9", "http://x/")],
        at("artifacts", {"path": "x"}, """expected a list, got {"path": "x"}"""),
        ({"artifacts": [{}, {"pth": "x"}]}, "artifacts.1.pth: unknown key; did you mean path?"),
        ({"artifacts": [{"path": "../etc"}]},
         "artifacts.0.path: expected a path or pattern below /artifacts, got '../etc'"),
        ({"artifacts": [{"expires_in_days": 0}]}, "artifacts.0.expires_in_days: expected at least 1, got 0"),
        ({"artifacts": [{"content_type": "text"}]}, "artifacts.0: expected a content_type such as text/plain"),
        ({"artifacts": [{"path": "x" * 1025}]}, "artifacts.0.path: expected at most 1024 characters, got 'xxx"),
        at("artifacts", [{}] * 101, "expected at most 100 entries"),
        at("secrets", ["a"] * 21, "expected at most 20 entries"),
        ({"secrets": ["../passwd"]},
         "secrets.0: expected the name of a secret: letters, digits, underscores, dots and dashes, got '../passwd'"),
        at("secrets", "TOKEN", "expected a list, got 'TOKEN'"), at("services", 1, "expected a list, got 1"),
        at("services", {"db": {"env": {"A": "hunter22"}}}, "expected a list, got an object"),
        at("services", [{"name": "db"}] * 11, "expected at most 10 entries, got a list"),
        at("services", [db(), db()], "expected a different name for each service, got a list"),
        ({"services": [{"image": "pg:1"}]}, "services.0.name: field required"),
        ({"services": [db(name="DB")]}, f"services.0.name: {HOST}, got 'DB'"),
        ({"services": [db(name="localhost")]}, f"services.0.name: {HOST}, got 'localhost'"),
        ({"services": [db(name="a" * 41)]}, f"services.0.name: {HOST}, got '{'a' * 41}'"),
        ({"services": [{"name": "db"}]}, "services.0: expected either image or tool, got an object"),
        ({"services": [db(tool="pg")]}, "services.0: expected either image or tool, got an object"),
        ({"services": [db(version="16")]}, "services.0: expected version only with tool, got an object"),
        ({"services": [db(privileged=True)]}, "services.0.privileged: unknown key"),
        ({"services": [db(network="host")]}, "services.0.network: unknown key"),
        ({"services": [db(env={"A": 1})]}, "services.0.env.A: expected text, got a number"),
        ({"services": [db(env={"OPS_A": "1"})]}, "services.0.env.OPS_A: names that begin with OPS_ belong to the"),
        ({"services": [db(env=["hunter22"])]}, "services.0.env: expected an object, got a list"),
        ({"services": [db(command="postgres")]}, "services.0.command: expected a list, got 'postgres'"),
        ({"services": [db(resources={"disk": "1g"})]}, "services.0.resources.disk: unknown key"),
        ({"services": [db(resources={"memroy": "1g"})]},
         "services.0.resources.memroy: unknown key; did you mean memory?"),
        ({"services": [db(resources={"memory": "1m"})]}, "services.0.resources.memory: expected at least 6m, got '1m'"),
        ({"services": [db(secrets=["a/b"])]}, "services.0.secrets.0: expected the name of a secret"),
        ({"services": [db(health={"comand": []})]}, "services.0.health.command: field required"),
        ({"services": [db(health={"command": ["x"], "retry": 1})]},
         "services.0.health.retry: unknown key; did you mean retries?"),
        ({"services": [db(health={"command": []})]}, "services.0.health.command: expected at least 1 entries"),
        ({"services": [db(health={"command": ["x"], "interval_seconds": 0})]},
         "services.0.health.interval_seconds: expected at least 0.1, got 0"),
        ({"services": [db(health={"command": ["x"], "retries": 0})]},
         "services.0.health.retries: expected at least 1, got 0"),
        ({"services": [db(tmpfs=[{"path": "/x"}] * 2)]}, "services.0: expected a different path for each tmpfs"),
        ({"services": [db(tmpfs=[{"path": "/x"}], volumes=[{"name": "a", "path": "/x/"}])]},
         "services.0: expected a different path for each tmpfs and volume, got an object"),
        ({"services": [db(volumes=[{"name": "a", "path": "x"}])]}, f"services.0.volumes.0.path: {MOUNT}, got 'x'"),
        at("cache", "/x", "expected a list, got '/x'"),
        at("cache", [{"name": "a", "path": "/x"}] * 6, "expected at most 5 entries"),
        *[at("cache", [{"name": "a", "path": "/x"}, {"name": name, "path": path}], "expected a different name and path")
          for name, path in (("a", "/y"), ("b", "/x/"))],
        ({"cache": [{"name": "a", "path": "/x", "size": 1}]}, "cache.0.size: unknown key"),
        ({"cache": [{"name": "a b", "path": "/x"}]}, f"cache.0.name: {VOLUME}, got 'a b'"),
        at("volumes", {"a": "/x"}, """expected a list, got {"a": "/x"}"""),
        at("volumes", [{"name": "a", "path": "/x"}] * 11, "expected at most 10 entries"),
        at("volumes", [{"name": name, "path": "/x"} for name in "ab"], "expected a different path for each volume"),
        ({"volumes": [{"name": "../a", "path": "/x"}]}, f"volumes.0.name: {VOLUME}, got '../a'"),
        ({"volumes": [{"name": "A", "path": "/x"}]}, f"volumes.0.name: {VOLUME}, got 'A'"),
        ({"volumes": [{"name": "a" * 65, "path": "/x"}]}, f"volumes.0.name: {VOLUME}, got 'aaa"),
        ({"volumes": [{"name": "a"}]}, "volumes.0.path: field required"),
        ({"volumes": [{"name": "a", "path": "/x", "readonly": True}]},
         "volumes.0.readonly: unknown key; did you mean read_only?"),
        ({"volumes": [{"name": "a", "path": "/x", "read_only": "yes"}]},
         "volumes.0.read_only: expected true or false, got 'yes'"),
        ({"volumes": [{"name": "a", "path": "/run"}]},
         "volumes.0.path: expected a folder that is not in /run/secrets and does not contain it, got '/run'"),
        ({"services": [db(tmpfs=["/x"])]}, "services.0.tmpfs.0: expected an object, got '/x'"),
        ({"services": [db(tmpfs=[{"path": "data"}])]}, f"services.0.tmpfs.0.path: {MOUNT}, got 'data'"),
        *[({"services": [db(tmpfs=[{"path": path}])]}, f"services.0.tmpfs.0.path: {MOUNT}, got '{path}'")
          for path in ("/", "/a/../b", "/a//b", "/./a", "")],
        *[({"services": [db(tmpfs=[{"path": path}])]},
           f"services.0.tmpfs.0.path: expected a folder that is not in {taken} and does not contain it, got '{path}'")
          for path, taken in (("/artifacts", "/artifacts"), ("/artifacts/x/", "/artifacts"), ("/run", "/run/secrets"),
                              ("/run/secrets/x", "/run/secrets"), ("/proc/1", "/proc"), ("/sys", "/sys"))],
        at("artifacts", [{}] * 200_000, VALUES), at("env", {f"a b{n}": "" for n in range(200_000)}, VALUES),
        ({str(n): n for n in range(200_000)}, f"5000: {VALUES}"), at("retry", DEEP, "expected at most 32 levels"),
        at("artifacts", [{"path": "x" * 1_200_000}], TEXT), ({"x" * 10_000_000: 1}, f"{'x' * 60}: {TEXT}"),
        ({"x" * 200_000: 1}, f"{'x' * 60}: unknown key"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["workflow", "tool"])
def test_bad_config_is_one_sentence_with_its_place(place: str, config: dict[str, Any], message: str) -> None:
    error = refusal(configured(config) if place == "workflow" else configured(tool=config))
    assert error.reason == "invalid_config"
    assert str(error).removeprefix(f"{place} config, ").startswith(message)
    assert "\n" not in str(error)
    assert error.field in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        at("labels", "arm64", "expected a list, got 'arm64'"), at("retry", 1, "expected an object, got 1"),
        at("labels", ["x"] * 21, f"expected at most 20 entries, got {json.dumps(['x'] * 21)[:57]}..."),
        ({"labels": ["x" * 101]}, f"labels.0: expected at most 100 characters, got '{'x' * 56}..."),
        ({"run_env": ["A B"]}, f"run_env.0: {NAME}, got 'A B'"),
        ({"run_env": ["PATH"]}, "run_env.0: expected no variable that makes programs run other code, got 'PATH'"),
        at("priority", 2**31, "expected less than 2147483648, got 2147483648"),
        at("concurrency_key", 5, "expected text, got 5"), ({"retry": {"max_attempts": 2}}, "retry.on: field required"),
        ({"retry": {"on": ["oom"]}}, "retry.max_attempts: field required"),
        ({"retry": {"max_attempts": 1, "on": ["oom"]}}, "retry.max_attempts: expected at least 2, got 1"),
        ({"retry": {"max_attempts": 2, "on": ["always"]}},
         "retry.on.0: expected one of 'worker_lost', 'failed', 'timeout' or 'oom', got 'always'"),
        ({"retry": {"max_attempts": 2, "on": ["oom"], "delays": 1}},
         "retry.delays: unknown key; did you mean delay_seconds?"),
    ],
)  # fmt: skip
def test_keys_of_the_database_are_checked_in_a_workflow_and_unknown_in_a_tool(
    config: dict[str, Any], message: str
) -> None:
    assert str(refusal(configured(config))) == f"workflow config, {message}"
    [key] = config
    assert str(refusal(configured(tool=config))).startswith(f"tool config, {key}: unknown key")


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "PYTHONWARNINGS", "BASH_ENV", "BROWSER", "PERL5OPT", "GIT_SSH_COMMAND", "GIT_PAGER"]
)
def test_variable_that_loads_code_is_not_for_runs(name: str) -> None:
    assert refusal(configured({"run_env": [name]})).field == "run_env.0"


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"secrets": [], "services": [], "retry": None, "labels": [], "concurrency_key": None, "priority": -5}, {}),
        ({"tool": "odoo", "version": "18.0", "labels": ["arm64"], "concurrency_key": "prod", "services": []}, {}),
        ({"command": None, "timeout_seconds": None, "user": None}, {}), ({"command": []}, {"command": ()}),
        ({"resources": {"cpus": 1, "memory": 2**30, "pids": 10}}, {"cpus": 1, "memory_bytes": 2**30, "pids": 10}),
        ({"resources": {"nofile": 1024, "output": "10m"}}, {"nofile": 1024, "output_bytes": 10 * 2**20}),
        ({"retry": {"max_attempts": 3, "on": ["failed", "oom"], "delay_seconds": 0.5}}, {}),
        ({"resources": {"memory": "65536KiB"}}, {"memory_bytes": 2**26}),
        ({"resources": {"memory": "1.5g"}}, {"memory_bytes": 3 * 2**29}), ({"artifacts": []}, {"artifacts": ()}),
        ({"network": "none", "read_only": True}, {"network": "none", "read_only": True}),
        ({"artifacts": [{"path": "a", "expires_in_days": None}]},
         {"artifacts": (ArtifactRule(path="a", expires_in_days=None),)}),
    ],
)  # fmt: skip
def test_good_config_is_accepted(config: dict[str, Any], kept: dict[str, Any]) -> None:
    spec = resolve(configured(config), HostPolicy())
    assert {name: getattr(spec, name) for name in kept} == kept


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("report.html", "report.html"), ("logs/*.log", "logs/*.log"), ("/artifacts/logs/*.log", "logs/*.log"),
        ("/artifacts", "**"), ("/artifacts/", "**"), ("//artifacts//a", "a"), ("./a/./b", "a/b"), ("logs/", "logs/**"),
        ("..a/b..", "..a/b.."), ("x" * 1021 + "/", "x" * 1021 + "/**"), ("", None), ("/", None), ("/etc/passwd", None),
        ("/artifacts2/x", None), ("/artifacts/../etc", None), ("a/../../b", None), ("..", None), ("a\0", None),
    ],
)  # fmt: skip
def test_artifact_path_stays_below_its_folder(path: str, below: str | None) -> None:
    work = configured({"artifacts": [{"path": path}]})
    if below is None:
        assert refusal(work).field == "artifacts.0.path"
    else:
        assert resolve(work, HostPolicy()).artifacts[0].path == below


def may_not(key: str) -> tuple[dict[str, Any], str]:
    return at(key, [], f"a run may set env, args, git_ref, git_commit; {key} belongs into the workflow's config")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        may_not("user"), may_not("command"), may_not("services"), at("args", "x", "expected a list, got 'x'"),
        ({"args": [1]}, "args.0: expected text, got 1"), at("env.A", None, "expected text, got null"),
        at("env.OPS_X", "", "names that begin with OPS_ belong to the worker"),
        at("env.A", "1", 'the workflow does not list it; add "A" to run_env in the workflow\'s config'),
        at("git_ref", "", "expected the name of a branch, a tag or a ref, got ''"),
        at("git_ref", "--upload-pack=x", "expected the name of a branch, a tag or a ref, got '--upload-pack=x'"),
        at("git_commit", "HEAD", "expected 7 to 64 hexadecimal digits, in lower case, got 'HEAD'"),
        at("git_commit", 1234567, "expected text, got 1234567"),
    ],
)  # fmt: skip
def test_bad_run_metadata_is_refused(metadata: dict[str, Any], message: str) -> None:
    error = refusal(configured(metadata=metadata))
    assert (error.reason, str(error)) == ("invalid_config", f"run metadata, {message}")


@pytest.mark.parametrize("ref", ["main", "18.0", "feature/größe-1", "refs/pull/7/head", "a@b", "x" * 255])
def test_git_ref_is_accepted(ref: str) -> None:
    assert resolve(configured(metadata={"git_ref": ref}), HostPolicy()).env["OPS_GIT_REF"] == ref


@pytest.mark.parametrize(
    "ref",
    ["-x", "/x", "x/", ".x", "x.", "a..b", "a//b", "a b", "a\nb", "a\0", "a~1", "a^", "a:b", "a*", "a@{1}", "x" * 256],
)
def test_git_ref_is_refused(ref: str) -> None:
    assert refusal(configured(metadata={"git_ref": ref})).field == "git_ref"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["tool", "version", "command", "env", "run_env", "timeout_seconds", "resources", "network", "user", "read_only",
     "artifacts", "secrets", "services", "retry", "labels", "priority", "concurrency_key", "args", "memory", "cpus",
     "pids", "path"]
)  # fmt: skip
VALUE_OF_ENV = "hunter22"
ENV = st.recursive(
    st.just(VALUE_OF_ENV),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4) | st.just("A"), inner, max_size=2),
    max_leaves=3,
)
SERVICE = st.fixed_dictionaries({}, optional={"name": st.just("db"), "image": st.just("pg"), "env": ENV, "tmpfs": JSON})
CONFIG = st.builds(
    lambda config, env: {**config, **env},
    st.dictionaries(KEYS | st.text(max_size=5), JSON, max_size=4),
    st.fixed_dictionaries({}, optional={"env": ENV, "services": st.lists(SERVICE, max_size=2) | SERVICE}),
)


def resolved(**configs: dict[str, Any]) -> RunSpec | SpecError:
    try:
        return resolve(configured(**configs), HostPolicy())
    except SpecError as error:
        return error


@given(workflow=CONFIG, tool=CONFIG, metadata=CONFIG)
def test_every_config_is_a_spec_or_a_refusal_without_values_of_env(
    workflow: dict[str, Any], tool: dict[str, Any], metadata: dict[str, Any]
) -> None:
    outcome = resolved(workflow=workflow, tool=tool, metadata=metadata)
    if isinstance(outcome, SpecError):
        assert outcome.reason == "invalid_config"
        assert outcome.field
        assert outcome.field in str(outcome)
        assert VALUE_OF_ENV not in str(outcome)
        assert len(str(outcome)) < 1000
        assert "\n" not in str(outcome)
    else:
        assert outcome.image == f"docker.io/library/{IMAGE}"
        assert outcome.env["OPS_PROJECT"] == "acme"


@given(size=st.integers() | st.from_regex(r"\A\d{1,400}(\.\d{1,3})?[kmgt]?\Z"))
def test_every_size_is_in_bounds_or_refused(size: int | str) -> None:
    outcome = resolved(workflow={"resources": {"memory": size}})
    if isinstance(outcome, SpecError):
        assert outcome.field == "resources.memory"
    else:
        assert 6 * 2**20 <= outcome.memory_bytes <= 2**50
