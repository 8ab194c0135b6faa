"""Which revisions stay."""

import random
from typing import Any

from audit_operator.controller.children import Ref
from audit_operator.controller.revisions import KEPT, REVISION_OF, kept


def revision(of: str, number: int) -> tuple[Ref, dict[str, Any]]:
    metadata = {"creationTimestamp": f"2026-01-01T00:{number:02}:00Z", "labels": {REVISION_OF: of}}
    return Ref("ConfigMap", f"{of}-{number:02}"), metadata


def test_the_last_ten_of_every_kind_stay() -> None:
    found = [revision(of, number) for of in ("apiserver", "receiver-program") for number in range(25)]
    random.Random(1).shuffle(found)
    newest = {f"{of}-{number:02}" for of in ("apiserver", "receiver-program") for number in range(25 - KEPT, 25)}
    assert {ref.name for ref in kept(dict(found))} == newest


def test_what_is_no_revision_is_not_kept_by_its_age() -> None:
    assert kept({Ref("ConfigMap", "old"): {"creationTimestamp": "2026-01-01T00:00:00Z", "labels": {}}}) == []
