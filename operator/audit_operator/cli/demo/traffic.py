"""What the demo's API servers send: recorded events, cut by the policy they run, with values planted as secrets."""

import base64
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from audit_operator.policy.evaluate import Evaluator
from audit_operator.policy.events import event_of
from audit_operator.policy.model import Level, Policy, Stage
from audit_operator.policy.request import request_of

Object = dict[str, Any]

_IDS: Final = uuid.UUID("6f1f0f52-5d0c-4c5e-9d6f-0f6d1b0c7a11")
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


class Planting:
    """Puts values that all begin with ``marker`` where redaction promises that nothing leaves; ``count`` of them."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self.count = 0

    def plant(self, event: Object) -> None:
        """Into both bodies, in place."""
        reference = event.get("objectRef") or {}
        kind = "/".join(filter(None, (reference.get("resource"), reference.get("subresource"))))
        for name in ("requestObject", "responseObject"):
            body = event.get(name)
            if isinstance(body, list):
                self._json_patch(kind, body)
            elif isinstance(body, dict) and body.get("kind") != "Status":
                items = body.get("items")
                for each in items if isinstance(items, list) else [body]:
                    self._object(kind, each)

    def _object(self, kind: str, body: Object) -> None:
        match kind:
            case "secrets":
                self._values(body, "data", encoded=True)
                self._values(body, "stringData")
            case "configmaps":
                self._values(body, "data")
            case "serviceaccounts/token":
                self._value(body.get("status"), "token")
            case "tokenreviews":
                self._value(body.get("spec"), "token")
            case "certificatesigningrequests" | "certificatesigningrequests/approval":
                self._value(body.get("spec"), "request", encoded=True)
                self._value(body.get("status"), "certificate", encoded=True)
            case "widgets" | "widgets/status":
                self._value(body.get("spec"), "apiKey")
            case _:
                return
        annotations = (body.get("metadata") or {}).get("annotations") or {}
        if _LAST_APPLIED in annotations:
            annotations[_LAST_APPLIED] = json.dumps({"data": {"password": self._next()}})

    def _json_patch(self, kind: str, patch: list[Any]) -> None:
        for step in patch:
            if kind in ("secrets", "configmaps") and str(step.get("path")).startswith("/data/") and "value" in step:
                step["value"] = self._next()

    def _values(self, body: Object, name: str, *, encoded: bool = False) -> None:
        for key in body.get(name) or {}:
            self._value(body[name], key, encoded=encoded)

    def _value(self, where: Any, key: str, *, encoded: bool = False) -> None:
        if isinstance(where, dict) and key in where:
            value = self._next()
            where[key] = base64.b64encode(value.encode()).decode() if encoded else value

    def _next(self) -> str:
        self.count += 1
        return f"{self._marker}-{self.count:05}"


def posts(
    recorded: Sequence[bytes], policy: Policy, server: str, rounds: int, planting: Planting
) -> Iterator[tuple[bytes, int]]:
    """What an API server that runs ``policy`` sends of the EventLists: the bodies, and how many events are in each.

    Every round is a copy with auditIDs of its own. What the policy does not record is left out, as are bodies above its
    level.
    """
    evaluator = Evaluator(policy)
    for number in range(rounds):
        for text in recorded:
            items = [item for item in json.loads(text)["items"] if _cut(item, evaluator)]
            for item in items:
                item["auditID"] = str(uuid.uuid5(_IDS, f"{server}/{number}/{item['auditID']}"))
                planting.plant(item)
            if items:
                document = {"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": items}
                yield json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(), len(items)


def _cut(event: Object, evaluator: Evaluator) -> bool:
    """Whether the API server records it; cut to the level at which it does."""
    decision = evaluator.decide(request_of(event_of(event)))
    if decision.level is Level.NONE or Stage(event["stage"]) in decision.omit_stages:
        return False
    level = decision.level.server
    event["level"] = str(level)
    if level < Level.REQUEST:
        event.pop("requestObject", None)
    if level < Level.REQUEST_RESPONSE:
        event.pop("responseObject", None)
    return True


def needles(marker: str) -> tuple[bytes, ...]:
    """How the marker looks in any text: as it is, and in base64, wherever in the encoded bytes it begins."""
    found = [marker.encode()]
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + marker.encode())
        # The characters at both ends hold bits of what stands beside the marker.
        found.append(text[(0, 2, 3)[shift] : -4])
    return tuple(found)


def occurrences(needles_: Iterable[bytes], data: bytes) -> int:
    """How often any of them is in the data."""
    return sum(data.count(needle) for needle in needles_)
