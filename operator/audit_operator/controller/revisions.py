"""Which immutable revisions of what was published stay: the newest, and those before it, as many as one goes back."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from audit_operator.controller.children import Ref

KEPT: Final = 10
REVISION_OF: Final = "audit-operator.dev/revision-of"
"""Label of a revision: what it is one of."""


def kept(live: Mapping[Ref, Mapping[str, Any]]) -> list[Ref]:
    """Of every kind of revision the last ten; of two made in the same second the order is that of their names."""
    families: dict[str, list[Ref]] = defaultdict(list)
    for ref, metadata in live.items():
        if family := (metadata.get("labels") or {}).get(REVISION_OF):
            families[family].append(ref)
    newest_first = {
        family: sorted(refs, key=lambda ref: (str(live[ref].get("creationTimestamp")), ref.name), reverse=True)
        for family, refs in families.items()
    }
    return [ref for refs in newest_first.values() for ref in refs[:KEPT]]
