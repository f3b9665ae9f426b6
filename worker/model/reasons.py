"""What each reason of a run means, and what helps, for a person. Pure.

docs/guide.md has the same advice with more detail; a test holds the two lists of reasons together.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Explanation:
    """``meaning`` completes "the run ended because"; ``advice`` says what to do."""

    meaning: str
    advice: str


EXPLANATIONS: dict[str, Explanation] = {
    "exit_code": Explanation(
        "its program exited with an error",
        "Read the error lines of its log. A failing Odoo test exits with 1. With 127 the command is not in the image,"
        " with 126 it is not executable.",
    ),
    "signal": Explanation(
        "a signal killed its program",
        "SIGSEGV is a defect of the program. After SIGKILL or SIGTERM, look whether the host was out of memory, a"
        " person sent the signal, or the engine was stopped.",
    ),
    "out_of_memory": Explanation(
        "the kernel killed a process at the memory limit",
        "Raise resources.memory in the workflow's config, or use fewer Odoo workers.",
    ),
    "timeout": Explanation(
        "it ran longer than timeout_seconds",
        "Read its last lines: raise timeout_seconds in the workflow's config, or find out what the program waits for.",
    ),
    "service_failed": Explanation(
        "a service ended before it, became unhealthy, or was not healthy in time",
        "Read the last lines of the service in the error event: service_log. Repair its command or health, or raise its"
        " resources. An image that starts as root and changes its user needs user.",
    ),
    "ttl": Explanation(
        "it was served for serve.ttl_seconds",
        "Nothing is wrong. Queue it again, or raise serve.ttl_seconds in the workflow's config.",
    ),
    "not_ready": Explanation(
        "the health path of a served run did not answer in time",
        "Read its last lines. Correct serve.port and serve.health.path, let the program listen on 0.0.0.0, or raise"
        " serve.ready_timeout_seconds.",
    ),
    "serve_ended": Explanation(
        "the program of a served run ended by itself",
        "Read its last lines. The command must stay in the foreground as long as the environment is to be served.",
    ),
    "output_limit": Explanation(
        "it printed more than resources.output",
        "Lower the log level of the program, or raise resources.output in the workflow's config.",
    ),
    "disk_limit": Explanation(
        "it wrote more than resources.disk",
        "Raise resources.disk in the workflow's config, or make the program delete files that it no longer needs.",
    ),
    "canceled": Explanation(
        "it was canceled",
        "The actor of the event names the user or role. `ops-worker runs retry` queues it again.",
    ),
    "superseded": Explanation(
        "a newer run of its workflow took its place",
        "on_newer in the workflow's config asks for that. `ops-worker runs retry` queues it again.",
    ),
    "queue_timeout": Explanation(
        "it waited longer than queue_timeout_seconds",
        "Find out why it waited: `ops-worker queue` says it of the runs that wait now. Then queue it again.",
    ),
    "rejected": Explanation(
        "an admin rejected it", "Read the reason in its event. `ops-worker runs retry` asks for an approval again."
    ),
    "approval_expired": Explanation(
        "no admin approved it within 24 hours", "`ops-worker runs retry` asks for an approval again."
    ),
    "workflow_disabled": Explanation(
        "its workflow was disabled after it was queued", "Enable the workflow, and queue the run again."
    ),
    "project_archived": Explanation(
        "its project was archived after it was queued", "Make the project active, and queue the run again."
    ),
    "tool_missing": Explanation(
        "ops.tools has no such tool in this version",
        "`ops-worker tools list` shows what exists. Insert the row, or correct tool and version in the"
        " workflow's config.",
    ),
    "invalid_config": Explanation(
        "its configuration is not valid, or asks for more than the host allows",
        "Correct the key that the message names, or the host's --max-… and --allowed-networks.",
    ),
    "secret_missing": Explanation(
        "the host has no such secret for the project",
        "Create the file in --secrets-dir of the host, readable for the worker, or use labels to choose a host that"
        " has it.",
    ),
    "image_not_allowed": Explanation(
        "the host does not allow the image",
        "Add it to --allowed-images of the host, or use labels to choose a host that allows it.",
    ),
    "image_missing": Explanation(
        "the image is not on the host and could not be pulled",
        "Check the spelling of the image, the engine's credentials for the registry, and the network.",
    ),
    "artifacts_failed": Explanation(
        "its program succeeded, but its artifacts could not be stored",
        "Repair the artifact store, and queue the run again.",
    ),
    "disk_full": Explanation(
        "the disk of the engine or of the store was full",
        "Free disk space on the host. While less than --min-free-disk is left, the run that wrote the most is ended.",
    ),
    "engine_error": Explanation(
        "the container engine refused to create or start its container", "Read the engine's message, then its own log."
    ),
    "engine_lost": Explanation(
        "its container is gone, or the engine ended it",
        "Find out what removed or stopped the container: docker rm, docker system prune, or a restart of the engine"
        " without live-restore.",
    ),
    "worker_error": Explanation(
        "an error in the worker itself",
        "The worker's log has the traceback, with the run's id. It is a defect of ops-worker: please report it.",
    ),
    "worker_lost": Explanation(
        "its worker was lost, and no other worker adopted it",
        "The host was down or disconnected. Find out how far the run came, then queue it again.",
    ),
    "poison": Explanation(
        "several workers in a row were lost with it, so it is quarantined",
        "It probably brings its host down. Find out why before you queue it again.",
    ),
    "database_copied": Explanation(
        "this database is a copy, and the run continued in the original", "Queue it again here if you need it."
    ),
    "failed": Explanation("another client reported it as failed, without a reason", "Ask the operator of that client."),
}
