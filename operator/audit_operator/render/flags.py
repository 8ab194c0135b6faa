"""The API server's audit flags: each one's value, what it would be without us, and why it is set.

Facts of this module: docs/flags.md.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from audit_operator.policy.kinds import Version
from audit_operator.policy.model import Level, Policy, Stage
from audit_operator.resources.load import Problem
from audit_operator.resources.meta import quantity, seconds

if TYPE_CHECKING:
    from audit_operator.resources.auditbackend import AuditBackendSpec, Truncate

NODE_DIRECTORY: Final = "/etc/kubernetes/audit"
"""Where a control-plane node keeps what the flags name; mounted read-only into the API server's static pod."""
POLICY_FILE: Final = f"{NODE_DIRECTORY}/policy.yaml"
KUBECONFIG_FILE: Final = f"{NODE_DIRECTORY}/webhook.kubeconfig"

LOG_DEFAULTS_CHANGED: Final = (1, 36)

UNTRUNCATED_BODY_LIMIT: Final = 256 * 2**20
"""What the receiver takes in one POST when truncation is off and nothing bounds it: a choice, see docs/flags.md."""

_MIB: Final = 2**20
_ENVELOPE: Final = 128  # {"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[]} and room to spare
_BODIES_IN_MEMORY: Final = 4
_SLOW: Final = 100  # events a second and API server


class Flag(NamedTuple):
    """One command-line flag. ``default``: the value it has in this server version when it is not given."""

    name: str
    value: str
    default: str
    why: str

    def __str__(self) -> str:
        return f"--{self.name}={self.value}"


class Flags(NamedTuple):
    """The flags of one server version and what follows from them.

    ``body_limit``: bytes of the largest POST that an API server can send, rounded up to MiB, so what the receiver must
    take; None without webhook. ``events_per_second``: the most that one API server delivers, None for no limit.
    ``errors``: an API server with these flags would not start, or not with what it had; ``warnings``: it would, and do
    less than somebody wants.
    """

    flags: tuple[Flag, ...]
    body_limit: int | None
    events_per_second: int | None
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def flags(spec: "AuditBackendSpec", policy: Policy, server: Version) -> Flags:
    """The flags with which an API server of version ``server`` does what ``spec`` says with the policy ``policy``."""
    webhook = spec.webhook.enabled
    return Flags(
        flags=(
            Flag(
                "audit-policy-file", POLICY_FILE, "", "without a policy no backend gets an event, and nothing says so"
            ),
            *(_log_flags(spec, server) if spec.log.enabled else ()),
            *(_webhook_flags(spec) if webhook else ()),
        ),
        body_limit=_body_limit(spec) if webhook else None,
        events_per_second=_events_per_second(spec) if webhook else None,
        errors=tuple(_log_errors(spec) if spec.log.enabled else ()),
        warnings=tuple(_webhook_warnings(spec, policy) if webhook else ()),
    )


def log_directory(path: str) -> str | None:
    """The folder to mount for ``--audit-log-path``; None for standard output."""
    return None if path == "-" else path.rpartition("/")[0]


# --- log backend -----------------------------------------------------------------------------------------------------


def _log_flags(spec: "AuditBackendSpec", server: Version) -> list[Flag]:
    log = spec.log
    result = [Flag("audit-log-path", log.path, "", "turns the log backend on")]
    if log.path != "-":
        new = server >= LOG_DEFAULTS_CHANGED
        why = "always given, because Kubernetes 1.36 changed the default"
        result += [
            Flag("audit-log-maxage", str(log.max_age), "366" if new else "0", f"days; {why}"),
            Flag("audit-log-maxbackup", str(log.max_backups), "100" if new else "0", f"files; {why}"),
            # The number is the same in both, its neighbour 0 is not: no rotation from 1.36, 100 before.
            Flag("audit-log-maxsize", str(log.max_size), "100", "megabytes; always given, it bounds the node's disk"),
        ]
        if log.compress:
            result.append(Flag("audit-log-compress", "true", "false", "closed files take less of the node's disk"))
    if log.format != "json":
        result.append(Flag("audit-log-format", log.format, "json", "as spec.log.format says"))
    if log.mode != "blocking":
        result.append(Flag("audit-log-mode", log.mode, "blocking", "as spec.log.mode says"))
    return result + _truncate_flags("log", log.truncate)


def _truncate_flags(backend: str, truncate: "Truncate") -> list[Flag]:
    if not truncate.enabled:
        return []
    result = [
        Flag(f"audit-{backend}-truncate-enabled", "true", "false", "an event above the limit loses its bodies"),
        Flag(
            f"audit-{backend}-truncate-max-event-size",
            str(truncate.max_event_size),
            "102400",
            "bytes; the receiver's body limit stands on it" if backend == "webhook" else "bytes of one event",
        ),
    ]
    if truncate.max_batch_size != 10485760:
        why = "bytes; never below max-event-size, or the server stops"
        result.append(Flag(f"audit-{backend}-truncate-max-batch-size", str(truncate.max_batch_size), "10485760", why))
    return result


def _log_errors(spec: "AuditBackendSpec") -> Iterator[Problem]:
    path = spec.log.path
    directory = log_directory(path)
    if directory is None:
        return
    field, shown = "spec.log.path", repr(path)
    if directory == "":
        why = "lies in the node's root, which cannot be mounted into the API server"
        yield Problem(field, why, shown, "give the file a folder of its own")
    elif f"{directory}/".startswith(f"{NODE_DIRECTORY}/"):
        why = f"lies in {NODE_DIRECTORY}, which the API server mounts read-only"
        yield Problem(field, why, shown, "write logs to another folder")


# --- webhook backend -------------------------------------------------------------------------------------------------


def _webhook_flags(spec: "AuditBackendSpec") -> list[Flag]:
    webhook = spec.webhook
    result = [Flag("audit-webhook-config-file", KUBECONFIG_FILE, "", "turns the webhook backend on")]
    if webhook.mode != "batch":
        result.append(Flag("audit-webhook-mode", webhook.mode, "batch", "as spec.webhook.mode says"))
    else:
        batch, throttle = webhook.batch, webhook.batch.throttle
        size = "events in a POST; always given, the receiver's body limit stands on it"
        result.append(Flag("audit-webhook-batch-max-size", str(batch.max_size), "400", size))
        result += [
            Flag(f"audit-webhook-batch-{name}", value, default, f"as spec.webhook.batch.{field} says")
            for name, value, default, field in (
                ("buffer-size", str(batch.buffer_size), "10000", "bufferSize"),
                ("max-wait", batch.max_wait, "30s", "maxWait"),
                ("throttle-enable", str(throttle.enabled).lower(), "true", "throttle.enabled"),
                ("throttle-qps", str(throttle.qps), "10", "throttle.qps"),
                ("throttle-burst", str(throttle.burst), "15", "throttle.burst"),
            )
            if not _same(value, default) and (throttle.enabled or name not in ("throttle-qps", "throttle-burst"))
        ]
    if not _same(webhook.initial_backoff, "10s"):
        why = "the first of four growing waits between five attempts, after which a batch is lost"
        result.append(Flag("audit-webhook-initial-backoff", webhook.initial_backoff, "10s", why))
    return result + _truncate_flags("webhook", webhook.truncate)


def _same(value: str, default: str) -> bool:
    return value == default or (default.endswith("s") and seconds(value) == seconds(default))


def _events_in_post(spec: "AuditBackendSpec") -> int:
    """In the blocking modes a request waits for its own event, which travels alone."""
    return spec.webhook.batch.max_size if spec.webhook.mode == "batch" else 1


def _body_limit(spec: "AuditBackendSpec") -> int:
    truncate = spec.webhook.truncate
    if not truncate.enabled:
        return UNTRUNCATED_BODY_LIMIT
    # The server measures an event with its own kind and apiVersion, which items do not carry; a comma follows each.
    largest = _events_in_post(spec) * (truncate.max_event_size + 1) + _ENVELOPE
    return -(-largest // _MIB) * _MIB


def _events_per_second(spec: "AuditBackendSpec") -> int | None:
    batch = spec.webhook.batch
    if spec.webhook.mode != "batch" or not batch.throttle.enabled:
        return None
    return batch.throttle.qps * batch.max_size


def _webhook_warnings(spec: "AuditBackendSpec", policy: Policy) -> Iterator[Problem]:
    webhook, batch = spec.webhook, spec.webhook.batch
    limit = _body_limit(spec)
    if not webhook.truncate.enabled:
        yield Problem(
            "spec.webhook.truncate.enabled",
            f"bounds nothing: the receiver takes {limit // _MIB} MiB in one POST, and an API server loses a larger "
            "batch whole, after five attempts; so it does with the batch of a PATCH whose body is not JSON, by which "
            "whoever may patch anything erases the events of others",
            "false",
            "turn truncation on, or lower spec.webhook.batch.maxSize",
        )
    memory = spec.receiver.resources.limits.get("memory")
    if memory is not None and quantity(memory) < _BODIES_IN_MEMORY * limit:
        yield Problem(
            "spec.receiver.resources.limits.memory",
            f"is little for API servers that send up to {limit // _MIB} MiB in one POST",
            memory,
            f"allow {_BODIES_IN_MEMORY * limit // _MIB}Mi, or lower spec.webhook.batch.maxSize or "
            "spec.webhook.truncate.maxEventSize",
        )
    ceiling = _events_per_second(spec)
    if ceiling is not None and ceiling < _SLOW:
        yield Problem(
            "spec.webhook.batch.throttle.qps",
            f"lets one API server deliver at most {ceiling} events a second, in batches of {batch.max_size}; what "
            f"comes above that fills its buffer of {batch.buffer_size} and is lost",
            str(batch.throttle.qps),
            "raise it, or batch.maxSize",
        )
    mode = "spec.webhook.mode"
    if webhook.mode != "batch" and batch != type(batch)():
        yield Problem(mode, "leaves spec.webhook.batch without effect", webhook.mode, "drop batch, or write mode batch")
    if webhook.mode == "blocking-strict" and not _records_request_received(policy):
        yield Problem(
            mode,
            "does no more than blocking: requests fail at stage RequestReceived only, which the server policy omits",
            webhook.mode,
            "record that stage in an AuditPolicy, or write blocking",
        )


def _records_request_received(policy: Policy) -> bool:
    return any(
        rule.level > Level.NONE and Stage.REQUEST_RECEIVED not in policy.omit_stages | rule.omit_stages
        for rule in policy.rules
    )
