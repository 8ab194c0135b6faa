"""The last valid version of every resource survives whatever happens to the operator and to the resource."""

import base64
import gzip
import json
import random
from typing import Any

import pytest

from audit_operator.controller import accepted
from audit_operator.controller.watching import Seen, see
from audit_operator.render.world import Identity
from audit_operator.resources.load import Resource

Json = dict[str, Any]


def document(number: int, level: str = "Metadata", *, uid: str = "", generation: int = 1) -> Json:
    return {
        "apiVersion": "audit-operator.dev/v1alpha1",
        "kind": "AuditPolicy",
        "metadata": {
            "name": f"p{number}",
            "namespace": f"team-{number % 7}",
            "uid": uid or f"uid-{number}",
            "generation": generation,
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"rules": [{"level": level, "users": [f"user-{number}"]}]},
    }


def seen(*documents: Json) -> list[Seen]:
    return [see(each) for each in documents]


def in_force(*documents: Json) -> dict[Identity, Resource]:
    return accepted.accepted(accepted.current(seen(*documents), {}))


@pytest.mark.parametrize("count", [0, 1, 499, 500, 501, 2300])
def test_what_is_written_is_read_back(count: int) -> None:
    found = in_force(*map(document, range(count)))
    written = accepted.written(found, "audit-system")
    assert len(found) == count
    bad = [see(each | {"spec": {}}) for each in map(document, range(count))]
    assert accepted.accepted(accepted.current(bad, accepted.read(written))) == found
    assert all(accepted.is_shard(item["metadata"]["name"]) for item in written)
    assert all(len(base64.b64decode(item["binaryData"]["resources.json.gz"])) < 1_000_000 for item in written)


def test_the_same_is_written_byte_for_byte_whatever_the_order_and_one_change_changes_one_object() -> None:
    documents = list(map(document, range(1200)))
    before = accepted.written(in_force(*documents), "audit-system")
    random.Random(1).shuffle(documents)
    assert accepted.written(in_force(*documents), "audit-system") == before
    documents[5] = document(int(documents[5]["metadata"]["name"][1:]), "None")
    after = accepted.written(in_force(*documents), "audit-system")
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def test_of_an_invalid_resource_the_last_good_version_counts() -> None:
    good = in_force(document(1), document(2))
    bad = document(1, "Loud", generation=2)
    resources = accepted.current(seen(bad, document(2)), good)
    assert accepted.accepted(resources) == good
    (invalid,) = resources.invalid
    assert (invalid.generation, invalid.identity.name) == (2, "p1")
    # And of one that was never good nothing does.
    fresh = accepted.current(seen(document(3, "Loud")), good)
    assert accepted.accepted(fresh) == {}


def test_a_namesake_of_a_deleted_resource_inherits_nothing() -> None:
    bad = document(1, "Loud", uid="another")
    assert accepted.accepted(accepted.current(seen(bad), in_force(document(1)))) == {}


def test_a_deleted_resource_is_out_of_force() -> None:
    assert accepted.accepted(accepted.current([], in_force(document(1)))) == {}


def test_of_one_resource_in_two_objects_the_newer_counts() -> None:
    older = accepted.written(in_force(document(1)), "n")
    newer = accepted.written(in_force(document(1, "None", generation=5)), "n")
    for objects in (older + newer, newer + older):
        (found,) = accepted.read(objects).values()
        assert found["metadata"]["generation"] == 5


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"resources.json.gz": ""},
        {"resources.json.gz": "AAAA"},
        {"resources.json.gz": base64.b64encode(b"\x1f\x8b" + bytes(20)).decode()},
        {"other": "x"},
    ],
)
def test_what_cannot_be_read_costs_nothing_else(data: Json) -> None:
    broken = {"metadata": {"name": f"{accepted.NAME}-9"}, "binaryData": data}
    written = accepted.written(in_force(document(1)), "n")
    assert accepted.read([broken, *written]) == accepted.read(written) != {}


def test_what_this_version_refuses_or_is_no_resource_is_left_out() -> None:
    texts = [json.dumps([document(1, "Loud"), document(2), {"kind": "x"}, 7]), json.dumps({"no": "list"})]
    packed = [base64.b64encode(gzip.compress(text.encode())).decode() for text in texts]
    objects = [{"metadata": {"name": "x"}, "binaryData": {"resources.json.gz": each}} for each in packed]
    last_good = accepted.read(objects)
    assert {identity.name for identity in last_good} == {"p1", "p2"}
    bad = seen(document(1, "Loud", generation=2), document(2, "Loud", generation=2))
    assert [identity.name for identity in accepted.accepted(accepted.current(bad, last_good))] == ["p2"]


def test_the_same_generation_is_the_same_value_so_that_nothing_is_made_twice() -> None:
    first = see(document(1))
    assert see(document(1), first).resource is first.resource
    assert see(document(1, generation=2), first).resource is not first.resource
    assert see(document(1, uid="other"), first).resource is not first.resource


def heavy(number: int, size: int) -> Json:
    """One of which gzip makes not much less."""
    noise = random.Random(number)
    users = [noise.randbytes(250).hex() for _ in range(size // 503)]
    changed = document(number)
    changed["spec"]["rules"] = [
        {"level": "Metadata", "users": users[start : start + 200]} for start in range(0, len(users), 200)
    ]
    return changed


def bytes_of(item: Json) -> int:
    return sum(len(base64.b64decode(value)) for value in item["binaryData"].values())


def test_no_config_map_is_larger_than_an_api_server_takes_however_large_resources_are() -> None:
    items = in_force(*(heavy(number, 300_000) for number in range(12)), *(document(100 + each) for each in range(50)))
    shards = accepted.written(items, "audit-system")
    assert all(bytes_of(shard) <= 1_000_000 for shard in shards)
    assert accepted.read(shards).keys() == items.keys()


def test_one_resource_that_no_config_map_holds_keeps_no_other_from_being_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    items = in_force(heavy(0, 3_000_000), *(document(number) for number in range(1, 20)))
    shards = accepted.written(items, "audit-system")
    assert all(bytes_of(shard) <= 1_000_000 for shard in shards)
    assert len(accepted.read(shards)) == 19
    assert "AuditPolicy team-0/p0" in caplog.text


def test_what_does_not_count_is_not_remembered() -> None:
    resources = accepted.current(seen(document(1), document(2)), {})
    refused = Identity("AuditPolicy", "team-2", "p2")
    assert accepted.accepted(resources, {refused}).keys() == {Identity("AuditPolicy", "team-1", "p1")}
