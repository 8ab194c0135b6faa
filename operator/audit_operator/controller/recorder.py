"""Kubernetes Events: what a person who runs `kubectl describe` should see. Nothing depends on them."""

import logging
import secrets
import time
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from audit_operator.controller.cluster import EVENTS, ApiError, Cluster
from audit_operator.controller.pace import Pace
from audit_operator.render.world import Identity
from audit_operator.resources.meta import API_VERSION

logger = logging.getLogger(__name__)

_LONGEST_NOTE: Final = 1024  # bytes; the API server refuses more

_BURST: Final = 30
_PER_SECOND: Final = 0.2
"""Events in one tenant's namespace: what somebody changes all the time must not fill etcd, and no Event is needed: the
condition says the same.
"""
_MANY: Final = 4096  # namespaces that are remembered


class News(NamedTuple):
    """What an Event says."""

    type: Literal["Normal", "Warning"]
    reason: str
    note: str


class Recorder:
    """Writes Events about our resources: in the platform's namespace ``root`` all, elsewhere not too many."""

    def __init__(self, cluster: Cluster, instance: str, root: str = "") -> None:
        self._cluster = cluster
        self._instance = instance
        self._root = root
        self._paces: dict[str, Pace] = {}

    def _allowed(self, namespace: str) -> bool:
        if namespace in ("", self._root):
            return True
        if namespace not in self._paces and len(self._paces) >= _MANY:
            self._paces.clear()
        return self._paces.setdefault(namespace, Pace(_BURST, _PER_SECOND)).allows(time.monotonic())

    async def record(self, about: Identity, uid: str, news: News) -> None:
        """An Event about a resource. What fails is logged and forgotten."""
        if not self._allowed(about.namespace):
            return
        # Events of cluster-scoped objects live in namespace default.
        namespace = about.namespace or "default"
        document = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            # The API server's generateName takes no dot at its end, and the name's form is everybody's custom.
            "metadata": {"name": f"{about.name[:200].rstrip('.-')}.{secrets.token_hex(8)}", "namespace": namespace},
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
