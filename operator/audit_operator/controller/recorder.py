"""Kubernetes Events: what a person who runs `kubectl describe` should see. Nothing depends on them."""

import logging
import secrets
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from audit_operator.controller.cluster import EVENTS, ApiError, Cluster
from audit_operator.render.world import Identity
from audit_operator.resources.meta import API_VERSION

logger = logging.getLogger(__name__)

_LONGEST_NOTE: Final = 1024  # bytes; the API server refuses more


class News(NamedTuple):
    """What an Event says."""

    type: Literal["Normal", "Warning"]
    reason: str
    note: str


class Recorder:
    """Writes Events about our resources."""

    def __init__(self, cluster: Cluster, instance: str) -> None:
        self._cluster = cluster
        self._instance = instance

    async def record(self, about: Identity, uid: str, news: News) -> None:
        """An Event about a resource. What fails is logged and forgotten."""
        # Events of cluster-scoped objects live in namespace default.
        namespace = about.namespace or "default"
        document = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            # The API server's generateName takes no dot at its end, and the name's form is everybody's custom.
            "metadata": {"name": f"{about.name[:200]}.{secrets.token_hex(8)}", "namespace": namespace},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "audit-operator.dev/operator",
            "reportingInstance": self._instance[:128],
            "type": news.type,
            "reason": news.reason[:128],
            "action": "Reconcile",
            "note": news.note.encode()[:_LONGEST_NOTE].decode(errors="ignore"),
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": about.kind,
                "name": about.name,
                "uid": uid,
                **({"namespace": about.namespace} if about.namespace else {}),
            },
        }
        try:
            await self._cluster.create(EVENTS, document)
        except ApiError as error:
            logger.warning("no Event about %s: %s", about, error)
