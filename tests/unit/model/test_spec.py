"""The specification of a run's container: which configuration wins, and what the host allows."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.claims import configured, make_claim, refusal
from worker.model.claim import Claim
from worker.model.config import ArtifactRule
from worker.model.serve import ServeTerms
from worker.model.service import Health, Tmpfs
from worker.model.spec import Bound, HostPolicy, RunSpec, ServiceSpec, ServiceTerms, resolve
from worker.model.volume import Mount, engine_name

RUN = uuid.UUID(int=1)
BAD_IMAGE = (
    "tool.docker_image: expected the name of an image, such as odoo:19.0 or registry.example/team/odoo:19.0,"
    " got 'Odoo:19.0'"
)


def changed(part: str, **fields: Any) -> Claim:
    """A claim with other values in that part."""
    work = make_claim(RUN)
    return replace(work, **{part: replace(getattr(work, part), **fields)})


def test_payload_of_a_newer_schema_is_read() -> None:
    tool = {"tool_name": "odoo", "version": "19.0", "docker_image": "odoo:19.0", "config": None, "new": 1}
    work = make_claim(RUN, new=1, tool=tool)
    assert (work.run_id, work.run_number, work.project.slug, work.tool.docker_image) == (RUN, 1, "acme", "odoo:19.0")
    assert (str(work.claimed_at), work.started_at) == ("2026-01-01 00:00:00+00:00", None)


def test_run_without_configuration_gets_the_defaults_of_its_host() -> None:
    assert resolve(changed("project", workspace_key="acme_ws"), HostPolicy()) == RunSpec(
        image="docker.io/library/tool:1", command=("build",), timeout_seconds=3600.0, cpus=2.0, memory_bytes=2 * 2**30,
        pids=1024, nofile=16_384, output_bytes=2 * 2**30, disk_bytes=20 * 2**30, network="bridge", user=None,
        read_only=False, artifacts=(ArtifactRule(path="**", content_type=None, expires_in_days=30),),
        env={
            "OPS_RUN_ID": str(RUN), "OPS_RUN_NUMBER": "1", "OPS_PROJECT": "acme", "OPS_WORKSPACE_KEY": "acme_ws",
            "OPS_WORKFLOW_TYPE": "build", "OPS_WORKFLOW_NAME": "nightly", "OPS_ODOO_VERSION": "19.0",
            "OPS_GIT_REF": "", "OPS_GIT_COMMIT": "", "OPS_PARENT_RUN_ID": "", "OPS_ARTIFACTS_DIR": "/artifacts",
        },
    )  # fmt: skip


def test_run_wins_over_workflow_over_tool_and_env_merges_by_name() -> None:
    env = {"B": "workflow", "C": "workflow"}
    workflow = {"env": env, "run_env": ["C"], "resources": {"memory": "1g"}, "timeout_seconds": 60}
    tool = {
        "env": {"A": "tool", "B": "tool"}, "resources": {"cpus": 0.5, "memory": "64m"}, "command": ["make", "all"],
        "timeout_seconds": 5, "user": "1000:1000", "read_only": True,
    }  # fmt: skip
    metadata = {"env": {"C": "run"}, "args": ["-v"], "asked_by": "a note", "ticket": {"n": 1}}
    spec = resolve(configured(workflow, tool=tool, metadata=metadata), HostPolicy())
    ours = {name: value for name, value in spec.env.items() if not name.startswith("OPS_")}
    assert ours == {"A": "tool", "B": "workflow", "C": "run"}
    assert (spec.command, spec.user, spec.read_only) == (("make", "all", "-v"), "1000:1000", True)
    assert (spec.cpus, spec.memory_bytes, spec.timeout_seconds) == (0.5, 2**30, 60)
    assert resolve(configured(metadata={"args": ["--fast"]}), HostPolicy()).command == ("build", "--fast")


@pytest.mark.parametrize(
    ("part", "fields", "reason", "field", "message"),
    [
        ("project", {"status": "archived"}, "project_archived", "project.status", "project acme is archived"),
        ("workflow", {"enabled": False}, "workflow_disabled", "workflow.enabled", "workflow 'nightly' is disabled"),
        ("tool", {"docker_image": None}, "tool_missing", "tool",
         "ops.tools has no odoo 19.0, which workflow 'nightly' asks for"),
        ("workflow", {"git_ref": "-x"}, "invalid_config", "git_ref",
         "workflow, git_ref: expected the name of a branch, a tag or a ref, got '-x'"),
        ("tool", {"docker_image": "Odoo:19.0"}, "invalid_config", "tool.docker_image", BAD_IMAGE),
    ],
)  # fmt: skip
def test_missing_or_disabled_part_is_refused(
    part: str, fields: dict[str, Any], reason: str, field: str, message: str
) -> None:
    error = refusal(changed(part, **fields))
    assert (error.reason, error.field, str(error)) == (reason, field, message)


def test_image_that_the_host_does_not_allow_is_refused_by_its_full_name() -> None:
    error = refusal(make_claim(), HostPolicy(allowed_images=("registry.example/**",)))
    message = "image docker.io/library/tool:1 matches none of this host's allowed images"
    assert (error.reason, error.field, str(error)) == ("image_not_allowed", "tool.docker_image", message)


def test_host_makes_every_root_file_system_read_only() -> None:
    assert resolve(configured({"read_only": False}), HostPolicy(read_only_root=True)).read_only


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
def test_ref_of_a_run_never_meets_the_commit_of_the_workflow(metadata: dict[str, Any], ref: str, commit: str) -> None:
    work = replace(changed("workflow", git_ref="18.0", git_commit="abc123"), metadata=metadata)
    env = resolve(work, HostPolicy()).env
    assert (env["OPS_GIT_REF"], env["OPS_GIT_COMMIT"]) == (ref, commit)


@pytest.mark.parametrize(
    ("name", "asked", "maximum", "asked_text", "maximum_text"),
    [
        ("cpus", 4, 2.0, "4", "2"), ("pids", 101, 100, "101", "100"), ("nofile", 999, 100, "999", "100"),
        ("memory", "4g", 2**30, "4g", "1g"), ("output", "2g", 2**30, "2g", "1g"), ("disk", "3g", 2**30, "3g", "1g"),
        ("timeout", 7200, 600.0, "7200", "600"),
    ],
)  # fmt: skip
def test_more_than_the_host_allows_is_refused(
    name: str, asked: Any, maximum: float, asked_text: str, maximum_text: str
) -> None:
    field = "timeout_seconds" if name == "timeout" else f"resources.{name}"
    config = {field: asked} if name == "timeout" else {"resources": {name: asked}}
    bound: dict[str, Any] = {name: Bound(1, maximum)}
    error = refusal(configured(config), HostPolicy(**bound))
    assert (error.reason, error.field) == ("invalid_config", field)
    assert str(error) == f"{field}: {asked_text} is more than this host allows, {maximum_text}"


def test_default_never_exceeds_the_maximum() -> None:
    bounds: dict[str, Any] = {name: Bound(99, 11) for name in HostPolicy().bounds}
    spec = resolve(configured(), HostPolicy(**bounds))
    assert (spec.cpus, spec.pids, spec.nofile, spec.timeout_seconds) == (11, 11, 11, 11)
    assert (spec.memory_bytes, spec.output_bytes, spec.disk_bytes) == (11, 11, 11)


def served(**more: Any) -> Claim:
    return configured({"serve": {"port": 8069} | more.pop("serve", {}), **more})


def test_served_run_gets_what_its_host_grants() -> None:
    spec = resolve(served(), HostPolicy())
    assert spec.serve == ServeTerms(
        port=8069, path="/", interval_seconds=2, ready_timeout_seconds=300, ttl_seconds=86_400, url=None
    )
    assert (spec.serve_address, spec.terms.limit_seconds) == ("127.0.0.1", 86_400)
    brief = resolve(served(serve={"ttl_seconds": 60}), HostPolicy(serve_url="https://{slug}-{run}.example")).serve
    assert brief is not None
    assert (brief.ready_timeout_seconds, brief.ttl_seconds, brief.url) == (60, 60, "https://acme-1.example")
    assert not configured({"serve": None}, tool={"serve": {"port": 1}}).served
    assert resolve(configured({"serve": None}, tool={"serve": {"port": 1}}), HostPolicy()).serve is None
    assert configured({}, tool={"serve": {"port": 1}}).served


@pytest.mark.parametrize(
    ("claim", "policy", "field", "message"),
    [
        (served(serve={"ttl_seconds": 61}), {"ttl": Bound(60.0, 60.0)}, "serve.ttl_seconds",
         "serve.ttl_seconds: 61 is more than this host allows, 60"),
        (served(network="none"), {}, "network", "network: expected another than none, since the run is served"),
        (served(), {"max_served": 0}, "serve", "serve: this host serves no runs (max_served)"),
        (served(network="project"), {"allowed_networks": ("bridge",)}, "network",
         "network 'project' is not one of this host's: bridge"),
    ],
)  # fmt: skip
def test_served_run_that_the_host_cannot_have_is_refused(
    claim: Claim, policy: dict[str, Any], field: str, message: str
) -> None:
    error = refusal(claim, HostPolicy(**policy))
    assert (error.reason, error.field, str(error)) == ("invalid_config", field, message)


def test_first_allowed_network_is_the_default() -> None:
    assert resolve(configured(), HostPolicy(allowed_networks=("none", "bridge"))).network == "none"
    assert refusal(configured(), HostPolicy(allowed_networks=())).field == "network"


# --- services -------------------------------------------------------------------------------------------------------

DB: dict[str, Any] = {"name": "db", "image": "postgres:16"}
TOOLS = [{"tool_name": "pg", "version": version, "docker_image": f"pg:{version}", "config": None} for version in "AB"]


def with_service(more: dict[str, Any], **config: Any) -> Claim:
    """A claim with a service ``db``."""
    work = make_claim(config={"services": [more], **config}, services=TOOLS)
    return replace(work, project=replace(work.project, odoo_version="A"))


def test_service_gets_what_it_asks_for_and_the_defaults_of_its_host() -> None:
    health = {"command": ["pg_isready"], "interval_seconds": 1, "retries": 5}
    asked = DB | {
        "command": ["-c", "fsync=off"], "env": {"A": "1"}, "secrets": ["a", "a"], "user": "postgres", "health": health,
        "resources": {"memory": "64m"}, "tmpfs": [{"path": "/data/", "size": "32m"}],
    }  # fmt: skip
    spec = resolve(with_service(asked), HostPolicy(read_only_root=True, cpus=Bound(1.5)))
    assert spec.services == (
        ServiceSpec(
            name="db", image="docker.io/library/postgres:16", command=("-c", "fsync=off"), env={"A": "1"}, cpus=1.5,
            memory_bytes=2**26, pids=1024, nofile=16_384, user="postgres", read_only=True, secrets=("a",),
            tmpfs=(Tmpfs(path="/data", size=2**25),),
            health=Health(command=["pg_isready"], interval_seconds=1, retries=5),
        ),
    )  # fmt: skip
    assert spec.terms.services == (ServiceTerms(name="db", memory_bytes=2**26, secrets=("a",)),)


@pytest.mark.parametrize(
    ("asked", "image"),
    [({"tool": "pg"}, "pg:A"), ({"tool": "pg", "version": "B"}, "pg:B"), ({"image": "x"}, "x:latest")],
)
def test_service_is_of_an_image_or_of_a_tool(asked: dict[str, str], image: str) -> None:
    [service] = resolve(with_service({"name": "db", **asked}), HostPolicy()).services
    assert service.image == f"docker.io/library/{image}"
    assert service.command is None, "that of its image"


@pytest.mark.parametrize(
    ("asked", "policy", "reason", "field", "message"),
    [
        ({"name": "db", "tool": "pg", "version": "C"}, {}, "tool_missing", "services.0.tool",
         "ops.tools has no pg C, which service 'db' asks for"),
        (DB | {"image": "Postgres"}, {}, "invalid_config", "services.0.image", "services.0.image: expected the name"),
        (DB, {"allowed_images": ("tool:*",)}, "image_not_allowed", "services.0.image",
         "image docker.io/library/postgres:16 matches none of this host's allowed images"),
        ({"name": "db", "tool": "pg"}, {"allowed_images": ("tool:*",)}, "image_not_allowed", "services.0.tool",
         "image docker.io/library/pg:A matches none of this host's allowed images"),
        (DB | {"resources": {"cpus": 3}}, {"cpus": Bound(1, 2)}, "invalid_config", "services.0.resources.cpus",
         "services.0.resources.cpus: 3 is more than this host allows, 2"),
        (DB, {"max_services": 0}, "invalid_config", "services", "services: 1 are more than this host allows, 0"),
    ],
)  # fmt: skip
def test_service_that_the_host_does_not_allow_is_refused(
    asked: dict[str, Any], policy: dict[str, Any], reason: str, field: str, message: str
) -> None:
    error = refusal(with_service(asked), HostPolicy(**policy))
    assert (error.reason, error.field) == (reason, field)
    assert str(error).startswith(message)


def test_run_with_services_needs_a_network_that_the_worker_makes() -> None:
    error = refusal(with_service(DB, network="shared"), HostPolicy(allowed_networks=("bridge", "shared")))
    expected = "network: a run with services has its own; expected bridge, none or project, got 'shared'"
    assert (error.field, str(error)) == ("network", expected)


def test_services_of_a_workflow_replace_those_of_its_tool() -> None:
    work = configured({"services": [DB]}, tool={"services": [DB | {"name": "a"}, DB | {"name": "b"}]})
    assert [service.name for service in resolve(work, HostPolicy()).services] == ["db"]


# --- volumes --------------------------------------------------------------------------------------------------------

DATA: dict[str, Any] = {"name": "data", "path": "/var/lib/data/", "read_only": True}


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [
        ((), False), (("*",), True), (("acme/*",), True), (("acme/data",), True), (("*/data",), True),
        (("other/data", "acme/d?ta"), True), (("acme2/*",), False), (("acme/dat",), False), (("other/*",), False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["volumes", "services.0.volumes"])
def test_volume_needs_the_permission_of_the_host(place: str, patterns: tuple[str, ...], *, allowed: bool) -> None:
    config = {"volumes": [DATA]} if place == "volumes" else {"services": [DB | {"volumes": [DATA]}]}
    policy = HostPolicy(allowed_volumes=patterns)
    if allowed:
        spec = resolve(configured(config), policy)
        [mount] = spec.volumes if place == "volumes" else spec.services[0].volumes
        assert mount == Mount("data", "/var/lib/data", read_only=True)
    else:
        error = refusal(configured(config), policy)
        message = f"{place}.0.name: volume acme/data matches none of this host's allowed volumes"
        assert (error.reason, error.field, str(error)) == ("invalid_config", f"{place}.0.name", message)


def test_name_of_a_volume_belongs_to_one_project_of_one_database() -> None:
    a, b = uuid.UUID(int=1), uuid.UUID(int=2)
    names = {engine_name(database, project, name) for database in (a, b) for project in (a, b) for name in ("x", "y")}
    assert len(names) == 8
    assert engine_name(a, b, "x") == engine_name(a, b, "x")


@pytest.mark.parametrize(("read_only", "keeps"), [(False, True), (True, False)])
def test_service_that_may_write_to_a_volume_is_known_in_the_terms(*, read_only: bool, keeps: bool) -> None:
    config = {"services": [DB | {"volumes": [DATA | {"read_only": read_only}]}]}
    assert resolve(configured(config), HostPolicy(allowed_volumes=("*",))).terms.services[0].keeps is keeps


def test_cache_is_not_mounted_over_a_volume() -> None:
    config = {"volumes": [DATA], "cache": [{"name": "a", "path": "/b"}, {"name": "b", "path": "/var/lib/data"}]}
    error = refusal(configured(config), HostPolicy(allowed_volumes=("*",)))
    expected = "cache.1.path: expected another path than those of the volumes, got '/var/lib/data'"
    assert (error.field, str(error)) == ("cache.1.path", expected)
