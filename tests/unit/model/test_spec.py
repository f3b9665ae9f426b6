"""What a run is made of: which configuration wins, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import SpecError
from worker.model.claim import Claim
from worker.model.config import ArtifactRule
from worker.model.spec import Bound, HostPolicy, RunSpec, resolve

RUN = uuid.UUID(int=1)
PAYLOAD: dict[str, Any] = {
    "run_id": str(RUN),
    "project_id": str(uuid.UUID(int=2)),
    "workflow_id": str(uuid.UUID(int=3)),
    "run_number": 7,
    "status": "claimed",
    "claimed_at": "2026-11-23T10:11:12.5+00:00",
    "started_at": None,
    "claim_count": 1,
    "lease_expires_at": "2026-11-23T10:16:12.5+00:00",
    "cancel_requested": False,
    "log_position": 0,
    "container_id": None,
    "metadata": {},
    "project": {
        "slug": "acme",
        "name": "Acme",
        "workspace_key": "acme_ws",
        "odoo_version": "19.0",
        "status": "active",
    },
    "workflow": {
        "workflow_type": "build",
        "name": "nightly",
        "enabled": True,
        "git_ref": None,
        "git_commit": "abc123",
        "config": {},
    },
    "tool": {"tool_name": "odoo", "version": "19.0", "docker_image": "odoo:19.0", "config": {}},
}


DEEP: Any = json.loads('{"a": [' * 200 + "1" + "]}" * 200)


def claim(
    workflow: dict[str, Any] | None = None,
    *,
    tool: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Claim:
    """A claim of a run with these configurations."""
    return Claim.from_payload(
        {
            **PAYLOAD,
            "workflow": {**PAYLOAD["workflow"], "config": workflow or {}},
            "tool": {**PAYLOAD["tool"], "config": tool or {}},
            "metadata": metadata or {},
        }
    )


def refusal(work: Claim, policy: HostPolicy | None = None) -> SpecError:
    with pytest.raises(SpecError) as caught:
        resolve(work, policy or HostPolicy())
    return caught.value


def test_a_claim_reads_its_payload_and_passes_over_what_a_newer_schema_adds() -> None:
    work = Claim.from_payload({**PAYLOAD, "new": 1, "project": {**PAYLOAD["project"], "new": 1}})
    assert (work.run_id, work.run_number, work.project.slug, work.tool.docker_image) == (RUN, 7, "acme", "odoo:19.0")
    assert work.claimed_at is not None
    assert work.claimed_at.isoformat() == "2026-11-23T10:11:12.500000+00:00"
    assert work.started_at is None


def test_a_run_that_says_nothing_gets_the_defaults_of_its_host() -> None:
    assert resolve(claim(), HostPolicy()) == RunSpec(
        image="docker.io/library/odoo:19.0",
        command=("build",),
        env={
            "OPS_RUN_ID": str(RUN),
            "OPS_RUN_NUMBER": "7",
            "OPS_PROJECT": "acme",
            "OPS_WORKSPACE_KEY": "acme_ws",
            "OPS_WORKFLOW_TYPE": "build",
            "OPS_WORKFLOW_NAME": "nightly",
            "OPS_ODOO_VERSION": "19.0",
            "OPS_GIT_REF": "",
            "OPS_GIT_COMMIT": "abc123",
            "OPS_ARTIFACTS_DIR": "/artifacts",
        },
        timeout_seconds=3600.0,
        cpus=2.0,
        memory_bytes=2 * 2**30,
        pids=1024,
        nofile=16_384,
        output_bytes=2 * 2**30,
        disk_bytes=20 * 2**30,
        network="bridge",
        user=None,
        read_only=False,
        artifacts=(ArtifactRule(path="**", content_type=None, expires_in_days=30),),
    )


def test_what_stands_nearer_to_the_run_wins_and_env_merges_name_by_name() -> None:
    spec = resolve(
        claim(
            {
                "env": {"B": "workflow", "C": "workflow"},
                "run_env": ["C"],
                "resources": {"memory": "1g"},
                "timeout_seconds": 60,
            },
            tool={
                "env": {"A": "tool", "B": "tool"},
                "resources": {"cpus": 0.5, "memory": "64m"},
                "command": ["make", "all"],
                "timeout_seconds": 5,
                "user": "1000:1000",
                "read_only": True,
            },
            metadata={"env": {"C": "run"}, "args": ["-v"], "asked_by": "a note", "ticket": {"n": 1}},
        ),
        HostPolicy(),
    )
    assert {name: value for name, value in spec.env.items() if not name.startswith("OPS_")} == {
        "A": "tool",
        "B": "workflow",
        "C": "run",
    }
    assert (spec.command, spec.user, spec.read_only) == (("make", "all", "-v"), "1000:1000", True)
    assert (spec.cpus, spec.memory_bytes, spec.timeout_seconds) == (0.5, 2**30, 60)


def test_args_follow_the_default_command_too() -> None:
    assert resolve(claim(metadata={"args": ["--fast"]}), HostPolicy()).command == ("build", "--fast")


def test_an_empty_command_leaves_the_image_its_own() -> None:
    assert resolve(claim({"command": []}), HostPolicy()).command == ()


@pytest.mark.parametrize(
    ("changed", "reason", "field", "message"),
    [
        ({"project": {"status": "archived"}}, "project_archived", "project.status", "project acme is archived"),
        (
            {"workflow": {"enabled": False}},
            "workflow_disabled",
            "workflow.enabled",
            "workflow 'nightly' is disabled",
        ),
        (
            {"tool": {"docker_image": None}},
            "tool_missing",
            "tool",
            "ops.tools has no odoo 19.0, which workflow 'nightly' asks for",
        ),
    ],
)
def test_what_is_missing_or_switched_off(changed: dict[str, Any], reason: str, field: str, message: str) -> None:
    [(part, fields)] = changed.items()
    error = refusal(Claim.from_payload({**PAYLOAD, part: {**PAYLOAD[part], **fields}}))
    assert (error.reason, error.field, str(error)) == (reason, field, message)


def test_an_image_that_the_host_does_not_allow_is_refused_by_its_full_name() -> None:
    error = refusal(claim(), HostPolicy(allowed_images=("registry.example/**",)))
    message = "image docker.io/library/odoo:19.0 matches none of this host's allowed images"
    assert (error.reason, error.field, str(error)) == ("image_not_allowed", "tool.docker_image", message)


def test_what_is_no_name_of_an_image_is_a_bad_configuration() -> None:
    work = claim()
    error = refusal(dataclasses.replace(work, tool=dataclasses.replace(work.tool, docker_image="Odoo:19.0")))
    assert (error.reason, error.field) == ("invalid_config", "tool.docker_image")
    assert "got 'Odoo:19.0'" in str(error)


def test_a_host_can_make_every_root_file_system_read_only() -> None:
    assert resolve(claim({"read_only": False}), HostPolicy(read_only_root=True)).read_only


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"comand": ["true"]}, "comand: unknown key; did you mean command?"),
        ({"privileged": True}, "privileged: unknown key"),
        ({"resources": {"memroy": "1g"}}, "resources.memroy: unknown key; did you mean memory?"),
        ({"artifacts": [{}, {"pth": "x"}]}, "artifacts.1.pth: unknown key; did you mean path?"),
        (
            {"resources": {"memory": "lots"}},
            "resources.memory: expected bytes or a size such as 512m or 2g, above 0 and not above 1024t, got 'lots'",
        ),
        (
            {"resources": {"memory": True}},
            "resources.memory: expected bytes or a size such as 512m or 2g, above 0 and not above 1024t, got true",
        ),
        (
            {"resources": {"memory": "9" * 400}},
            "resources.memory: expected bytes or a size such as 512m or 2g, above 0",
        ),
        ({"resources": {"memory": "1m"}}, "resources.memory: expected at least 6m, got '1m'"),
        ({"resources": {"cpus": 0}}, "resources.cpus: expected at least 0.01, got 0"),
        ({"resources": {"cpus": "2"}}, "resources.cpus: expected a number, got '2'"),
        ({"resources": {"pids": 1.5}}, "resources.pids: expected a whole number, got 1.5"),
        ({"resources": None}, "resources: expected an object, got null"),
        ({"timeout_seconds": "soon"}, "timeout_seconds: expected a number, got 'soon'"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds: expected a number, got Infinity"),
        ({"timeout_seconds": -1}, "timeout_seconds: expected more than 0, got -1"),
        ({"command": "make all"}, "command: expected a list, got 'make all'"),
        ({"command": ["make", 5]}, "command.1: expected text, got 5"),
        ({"command": ["a\0b"]}, "command.0: a NUL character is not possible here"),
        ({"env": {"A B": "x"}}, "env.A B: expected a name of letters, digits and underscores"),
        ({"env": {"1A": "x"}}, "env.1A: expected a name of letters, digits and underscores"),
        ({"env": {"A\n": "x"}}, r"env.A\n: expected a name of letters, digits and underscores"),
        ({"env": {"OPS_RUN_ID": "1"}}, "env.OPS_RUN_ID: names that begin with OPS_ belong to the worker"),
        ({"env": {"A": "x\0"}}, "env.A: a NUL character is not possible here"),
        ({"env": {"A": 12345678}}, "env.A: expected text, got a number"),
        ({"env": {"A": ["hunter22"]}}, "env.A: expected text, got a list"),
        ({"env": "hunter22"}, "env: expected an object, got text"),
        ({"read_only": "yes"}, "read_only: expected true or false, got 'yes'"),
        ({"user": ""}, "user: expected at least 1 character(s), got ''"),
        ({"network": "host"}, "network 'host' is not one of this host's: bridge, none"),
        ({"artifacts": {"path": "x"}}, """artifacts: expected a list, got {"path": "x"}"""),
        (
            {"artifacts": [{"path": "../etc"}]},
            "artifacts.0.path: expected a path or pattern below /artifacts, got '../etc'",
        ),
        ({"artifacts": [{"expires_in_days": 0}]}, "artifacts.0.expires_in_days: expected at least 1, got 0"),
        ({"artifacts": [{"content_type": "text"}]}, "artifacts.0: expected a content_type such as text/plain"),
        (
            {"secrets": ["../passwd"]},
            "secrets.0: expected the name of a secret: letters, digits, underscores, dots and dashes, got '../passwd'",
        ),
        ({"secrets": "TOKEN"}, "secrets: expected a list, got 'TOKEN'"),
        ({"": 1}, "'': unknown key"),
        ({"secrets": ["a"] * 21}, "secrets: expected at most 20 entries"),
        ({"artifacts": [{}] * 101}, "artifacts: expected at most 100 entries"),
        (
            {"artifacts": [{"path": "x" * 1025}]},
            "artifacts.0.path: expected at most 1024 characters, got 'xxx",
        ),
        ({"artifacts": [{}] * 200_000}, "artifacts: expected at most 10,000 values in all"),
        ({"env": {f"a b{n}": "" for n in range(200_000)}}, "env: expected at most 10,000 values in all"),
        ({"artifacts": [{"path": "x" * 1_200_000}]}, "artifacts: expected at most 262,144 characters in all"),
        ({"x" * 10_000_000: 1}, f"{'x' * 60}: expected at most 262,144 characters in all"),
        ({"x" * 200_000: 1}, f"{'x' * 60}: unknown key"),
        ({str(n): n for n in range(200_000)}, "5000: expected at most 10,000 values in all"),
        ({"retry": DEEP}, "retry: expected at most 32 levels"),
        ({"services": {"db": {"image": "postgres"}}}, "services: not supported by this version"),
        ({"services": [{"image": "postgres"}]}, "services: not supported by this version"),
        ({"services": 1}, "services: not supported by this version"),
    ],
)
@pytest.mark.parametrize("place", ["workflow", "tool"])
def test_a_bad_configuration_is_one_sentence_that_names_the_place(
    place: str, config: dict[str, Any], message: str
) -> None:
    error = refusal(claim(config) if place == "workflow" else claim(tool=config))
    assert error.reason == "invalid_config"
    assert str(error).removeprefix(f"{place} config, ").startswith(message)
    assert "\n" not in str(error)
    assert error.field in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"labels": "arm64"}, "labels: expected a list, got 'arm64'"),
        ({"labels": ["x"] * 21}, f"labels: expected at most 20 entries, got {json.dumps(['x'] * 21)[:57]}..."),
        ({"labels": ["x" * 101]}, f"labels.0: expected at most 100 characters, got '{'x' * 56}..."),
        ({"run_env": ["A B"]}, "run_env.0: expected a name of letters, digits and underscores, got 'A B'"),
        *(
            ({"run_env": [name]}, f"run_env.0: expected no variable that makes programs run other code, got '{name}'")
            for name in ("PATH", "LD_PRELOAD", "PYTHONWARNINGS", "BASH_ENV", "BROWSER", "PERL5OPT", "GIT_SSH_COMMAND")
        ),
        ({"priority": 2**31}, "priority: expected less than 2147483648, got 2147483648"),
        ({"priority": "high"}, "priority: expected a whole number, got 'high'"),
        ({"concurrency_key": 5}, "concurrency_key: expected text, got 5"),
        ({"retry": True}, "retry: expected an object, got true"),
        ({"retry": {"max_attempts": 2}}, "retry.on: field required"),
        ({"retry": {"on": ["oom"]}}, "retry.max_attempts: field required"),
        ({"retry": {"max_attempts": 1, "on": ["oom"]}}, "retry.max_attempts: expected at least 2, got 1"),
        (
            {"retry": {"max_attempts": 2, "on": ["always"]}},
            "retry.on.0: expected one of 'worker_lost', 'failed', 'timeout' or 'oom', got 'always'",
        ),
        (
            {"retry": {"max_attempts": 2, "on": ["oom"], "delays": 1}},
            "retry.delays: unknown key; did you mean delay_seconds?",
        ),
    ],
)
def test_what_the_database_reads_is_checked_in_a_workflow_and_unknown_to_a_tool(
    config: dict[str, Any], message: str
) -> None:
    assert str(refusal(claim(config))) == f"workflow config, {message}"
    [key] = config
    assert str(refusal(claim(tool=config))).startswith(f"tool config, {key}: unknown key")


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"secrets": [], "services": [], "retry": None, "labels": [], "concurrency_key": None}, {}),
        ({"services": {}, "priority": -5}, {}),
        ({"tool": "odoo", "version": "18.0", "labels": ["arm64"], "concurrency_key": "prod"}, {}),
        ({"command": None, "timeout_seconds": None, "user": None}, {}),
        ({"resources": {"cpus": 1, "memory": 2**30, "pids": 10}}, {"cpus": 1, "memory_bytes": 2**30, "pids": 10}),
        ({"resources": {"nofile": 1024}}, {"nofile": 1024}),
        ({"resources": {"output": "10m"}}, {"output_bytes": 10 * 2**20}),
        ({"retry": {"max_attempts": 3, "on": ["failed", "oom"], "delay_seconds": 0.5}}, {}),
        ({"resources": {"memory": "64KiB"}}, None),
        ({"resources": {"memory": "65536KiB"}}, {"memory_bytes": 2**26}),
        ({"resources": {"memory": "1.5g"}}, {"memory_bytes": 3 * 2**29}),
        ({"network": "none", "read_only": True}, {"network": "none", "read_only": True}),
        ({"artifacts": []}, {"artifacts": ()}),
        (
            {"artifacts": [{"path": "a", "expires_in_days": None}]},
            {"artifacts": (ArtifactRule(path="a", expires_in_days=None),)},
        ),
    ],
)
def test_what_a_workflow_may_say(config: dict[str, Any], kept: dict[str, Any] | None) -> None:
    if kept is None:
        refusal(claim(config))
        return
    spec = resolve(claim(config), HostPolicy())
    assert {name: getattr(spec, name) for name in kept} == kept


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("report.html", "report.html"),
        ("logs/*.log", "logs/*.log"),
        ("/artifacts/logs/*.log", "logs/*.log"),
        ("/artifacts", "**"),
        ("/artifacts/", "**"),
        ("//artifacts//a", "a"),
        ("./a/./b", "a/b"),
        ("logs/", "logs/**"),
        ("..a/b..", "..a/b.."),
        ("", None),
        ("/", None),
        ("x" * 1021 + "/", "x" * 1021 + "/**"),
        ("/etc/passwd", None),
        ("/artifacts2/x", None),
        ("/artifacts/../etc", None),
        ("a/../../b", None),
        ("..", None),
        ("a\0", None),
    ],
)
def test_artifacts_lie_below_their_folder(path: str, below: str | None) -> None:
    work = claim({"artifacts": [{"path": path}]})
    if below is None:
        assert refusal(work).field == "artifacts.0.path"
    else:
        assert resolve(work, HostPolicy()).artifacts[0].path == below


MAY_SET = "a run may set env, args, git_ref, git_commit"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"user": "root"}, f"user: {MAY_SET}; user belongs into the workflow's config"),
        ({"command": []}, f"command: {MAY_SET}; command belongs into the workflow's config"),
        ({"services": []}, f"services: {MAY_SET}; services belongs into the workflow's config"),
        ({"args": "x"}, "args: expected a list, got 'x'"),
        ({"args": [1]}, "args.0: expected text, got 1"),
        ({"env": {"OPS_X": ""}}, "env.OPS_X: names that begin with OPS_ belong to the worker"),
        ({"env": {"A": None}}, "env.A: expected text, got null"),
        ({"env": {"A": "1"}}, 'env.A: the workflow does not list it; add "A" to run_env in the workflow\'s config'),
        ({"git_ref": ""}, "git_ref: expected the name of a branch, a tag or a ref, got ''"),
        (
            {"git_ref": "--upload-pack=x"},
            "git_ref: expected the name of a branch, a tag or a ref, got '--upload-pack=x'",
        ),
        ({"git_commit": "HEAD"}, "git_commit: expected 7 to 64 hexadecimal digits, in lower case, got 'HEAD'"),
        ({"git_commit": 1234567}, "git_commit: expected text, got 1234567"),
    ],
)
def test_who_starts_a_run_sets_no_more_than_these(metadata: dict[str, Any], message: str) -> None:
    error = refusal(claim(metadata=metadata))
    assert (error.reason, str(error)) == ("invalid_config", f"run metadata, {message}")


@pytest.mark.parametrize(
    ("metadata", "ref", "commit"),
    [
        ({}, "18.0", "abc123"),
        ({"git_ref": None, "git_commit": None}, "18.0", "abc123"),
        ({"git_ref": "feature/x"}, "feature/x", ""),
        ({"git_commit": "4f2a91c"}, "18.0", "4f2a91c"),
        ({"git_ref": "refs/tags/v1.0", "git_commit": "4f2a91c"}, "refs/tags/v1.0", "4f2a91c"),
    ],
)
def test_a_run_may_say_which_commit_and_its_ref_never_meets_the_workflow_s_commit(
    metadata: dict[str, Any], ref: str, commit: str
) -> None:
    work = claim(metadata=metadata)
    work = dataclasses.replace(work, workflow=dataclasses.replace(work.workflow, git_ref="18.0"))
    env = resolve(work, HostPolicy()).env
    assert (env["OPS_GIT_REF"], env["OPS_GIT_COMMIT"]) == (ref, commit)


@pytest.mark.parametrize("ref", ["main", "18.0", "feature/größe-1", "refs/pull/7/head", "a@b", "x" * 255])
def test_names_that_git_gives_to_refs(ref: str) -> None:
    assert resolve(claim(metadata={"git_ref": ref}), HostPolicy()).env["OPS_GIT_REF"] == ref


@pytest.mark.parametrize(
    "ref",
    ["-x", "/x", "x/", ".x", "x.", "a..b", "a//b", "a b", "a\nb", "a\0", "a~1", "a^", "a:b", "a*", "a@{1}", "x" * 256],
)
def test_names_that_git_gives_to_no_ref(ref: str) -> None:
    assert refusal(claim(metadata={"git_ref": ref})).field == "git_ref"


@pytest.mark.parametrize(
    ("config", "limits", "message"),
    [
        ({"resources": {"cpus": 4}}, {"cpus": Bound(1, 2.0)}, "resources.cpus: 4 is more than this host allows, 2"),
        (
            {"resources": {"memory": "4g"}},
            {"memory": Bound(1, 2**30)},
            "resources.memory: 4g is more than this host allows, 1g",
        ),
        (
            {"resources": {"pids": 101}},
            {"pids": Bound(1, 100)},
            "resources.pids: 101 is more than this host allows, 100",
        ),
        (
            {"resources": {"nofile": 999}},
            {"nofile": Bound(1, 100)},
            "resources.nofile: 999 is more than this host allows, 100",
        ),
        (
            {"resources": {"output": "2g"}},
            {"output": Bound(1, 2**30)},
            "resources.output: 2g is more than this host allows, 1g",
        ),
        (
            {"resources": {"disk": "30g"}},
            {"disk": Bound(1, 10 * 2**30)},
            "resources.disk: 30g is more than this host allows, 10g",
        ),
        (
            {"timeout_seconds": 7200},
            {"timeout": Bound(1, 600.0)},
            "timeout_seconds: 7200 is more than this host allows, 600",
        ),
    ],
)
def test_more_than_the_host_allows_is_refused_with_both_figures(
    config: dict[str, Any], limits: dict[str, Any], message: str
) -> None:
    error = refusal(claim(config), HostPolicy(**limits))
    assert (error.reason, str(error)) == ("invalid_config", message)


def test_a_default_never_exceeds_the_maximum() -> None:
    spec = resolve(
        claim(),
        HostPolicy(cpus=Bound(2.0, 1.0), memory=Bound(2**30, 2**20), pids=Bound(99, 10), timeout=Bound(9.0, 5.0)),
    )
    assert (spec.cpus, spec.memory_bytes, spec.pids, spec.timeout_seconds) == (1.0, 2**20, 10, 5.0)


def test_the_first_of_the_host_s_networks_is_the_default() -> None:
    assert resolve(claim(), HostPolicy(allowed_networks=("none", "bridge"))).network == "none"
    assert resolve(claim(), HostPolicy(allowed_networks=("none",))).network == "none"
    assert refusal(claim(), HostPolicy(allowed_networks=())).field == "network"


def resolved(work: Claim) -> RunSpec | SpecError:
    try:
        return resolve(work, HostPolicy())
    except SpecError as error:
        return error


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
CONFIG = st.builds(
    lambda config, env: {**config, **env},
    st.dictionaries(KEYS | st.text(max_size=5), JSON, max_size=4),
    st.fixed_dictionaries({}, optional={"env": ENV}),
)


@given(workflow=CONFIG, tool=CONFIG, metadata=CONFIG)
def test_no_configuration_does_worse_than_a_refusal(
    workflow: dict[str, Any], tool: dict[str, Any], metadata: dict[str, Any]
) -> None:
    outcome = resolved(claim(workflow, tool=tool, metadata=metadata))
    if isinstance(outcome, SpecError):
        assert outcome.reason == "invalid_config"
        assert outcome.field
        assert outcome.field in str(outcome)
        assert VALUE_OF_ENV not in str(outcome)
        assert len(str(outcome)) < 1000
        assert "\n" not in str(outcome)
    else:
        assert outcome.image == "docker.io/library/odoo:19.0"
        assert outcome.env["OPS_RUN_ID"] == str(RUN)


@given(size=st.integers() | st.from_regex(r"\A\d{1,400}(\.\d{1,3})?[kmgt]?\Z"))
def test_no_size_does_worse_than_a_refusal(size: int | str) -> None:
    outcome = resolved(claim({"resources": {"memory": size}}))
    if isinstance(outcome, SpecError):
        assert outcome.field == "resources.memory"
    else:
        assert 6 * 2**20 <= outcome.memory_bytes <= 2**50
