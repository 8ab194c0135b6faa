"""What the operator and its receivers say to each other: who may, where, and what a receiver reports of itself.

The other half is the program (see `program`), which the operator sends to `PROGRAM_PATH`.
"""

from typing import Final

import msgspec

OPERATOR_NAME: Final = "audit-operator"
"""Common name of the operator's certificate. By itself it allows nothing: many CAs let anybody choose it."""

API_SERVER_NAME: Final = "kube-apiserver"
"""Common name, and DNS name, of the certificate that API servers get."""

CLIENTS_FILE: Final = "clients.json"
"""Beside the program in the ConfigMap that receivers mount; never pushed: what is pushed cannot say who may push."""

CLIENTS_SCHEMA: Final = "clients.receiver.audit-operator.dev/v1"

PROGRAM_PATH: Final = "/program"
STATUS_PATH: Final = "/status"

DELIVERING: Final = "Delivering"
IDLE: Final = "Idle"
"""States of a sink that is well."""

SCHEMA: Final = "status.receiver.audit-operator.dev/v1"


class _Wire(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """camelCase. While versions change, one side is older: what it does not know is ignored, what it does not say has a
    default.
    """


class ClientNames(_Wire, frozen=True):
    """Who may do what at a receiver, by the names in its certificate. ``api_servers``: common names, DNS names or URIs
    of those that may send events. ``operators``: URIs of those that may push programs and read the status.
    ``operator_by_common_name``: so may a certificate that has the common name `OPERATOR_NAME` and no URI at all, as
    operators' had before there were URIs in them.
    """

    schema: str = ""
    api_servers: tuple[str, ...] = (API_SERVER_NAME,)
    operators: tuple[str, ...] = ()
    operator_by_common_name: bool = False


def operator_uri(cluster_domain: str, namespace: str) -> str:
    """The name by which receivers know the operator of this cluster, as SPIFFE writes identities."""
    return f"spiffe://{cluster_domain}/ns/{namespace}/sa/{OPERATOR_NAME}"


def decoded_clients(text: bytes) -> ClientNames:
    """What is in `CLIENTS_FILE`. Raises ValueError."""
    found = msgspec.json.decode(text, type=ClientNames)
    if found.schema != CLIENTS_SCHEMA:
        raise ValueError(f"it is {found.schema}, not {CLIENTS_SCHEMA}")
    return found


def encoded_clients(clients: ClientNames) -> str:
    """As JSON for people, too."""
    text = msgspec.json.encode(msgspec.structs.replace(clients, schema=CLIENTS_SCHEMA))
    return msgspec.json.format(text, indent=1).decode() + "\n"


class ProgramStatus(_Wire, frozen=True):
    """``hash``: `text_hash` of the program in force, empty for none. ``refused``: why the newer one ``refused_hash``
    does not run.
    """

    hash: str = ""
    source: str = ""
    refused: str = ""
    refused_hash: str = ""


class SinkStatus(_Wire, frozen=True):
    """One sink of the program.

    ``state``: Delivering; Idle, as long as nothing was delivered; Unreachable, Unauthorized, Throttled, Misconfigured,
    QuarantineFull or JournalError, since ``since`` (seconds since the epoch), with ``message`` for a person.
    ``backlog_bytes`` of ``share_bytes`` wait in the journal, the oldest for ``oldest_seconds``. Counters are since the
    start of the receiver: ``dropped`` never reached the journal because the share was used up or, ``limited`` of them,
    because a tenant's policies ask for too many a second; ``dead_lettered`` the sink refused for good, ``damaged``
    could not be read back. ``dropping``: the share is used up now. ``limiting``: some were too many a moment ago.
    ``why_dropping``: either, as a sentence.
    """

    name: str
    type: str = ""
    state: str = ""
    message: str = ""
    since: float = 0.0
    last_delivery: float | None = None
    backlog_events: int = 0
    backlog_bytes: int = 0
    share_bytes: int = 0
    oldest_seconds: float = 0.0
    delivered: int = 0
    retried: int = 0
    dead_lettered: int = 0
    dropped: int = 0
    damaged: int = 0
    dropping: bool = False
    limiting: bool = False
    limited: int = 0
    why_dropping: str = ""


class Status(_Wire, frozen=True):
    """``ready``: events are taken; if not, ``why`` says why. ``servers``: API server -> stageTimestamp of its last
    event. ``not_covered``: policy -> events recorded at a lower level than it asks for. ``orphans``: sinks that are in
    the program no longer -> events that wait for them. ``quarantine``: sink or ``malformed`` -> bytes.
    """

    schema: str
    receiver: str = ""
    ready: bool = False
    why: str = ""
    program: ProgramStatus = ProgramStatus()
    certificates: str = ""
    journal_bytes: int = 0
    journal_limit: int = 0
    servers: dict[str, str] = {}
    not_covered: dict[str, int] = {}
    sinks: list[SinkStatus] = []
    orphans: dict[str, int] = {}
    quarantine: dict[str, int] = {}


def encoded(status: Status) -> bytes:
    """As JSON."""
    return msgspec.json.encode(status)


def decoded(text: bytes) -> Status:
    """What a receiver answered. Raises ValueError if that is no status, or one of a version that nobody here knows."""
    status = msgspec.json.decode(text, type=Status)
    if status.schema != SCHEMA:
        raise ValueError(f"it reports {status.schema}, not {SCHEMA}")
    return status
