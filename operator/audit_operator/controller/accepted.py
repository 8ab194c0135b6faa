"""The last valid version of every resource, kept in the cluster, so that a bad change takes nothing out of force.

A resource can become invalid under a running operator (an old CRD, a validation that was turned off) and under a new
one (a stricter version). Either way its last good version stays, also when the operator restarts meanwhile.
"""

import base64
import gzip
import json
import logging
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from audit_operator.controller.watching import Seen
from audit_operator.policy.memo import Same
from audit_operator.render.objects import CONFIG_MAP_LIMIT, Object, encoded, new
from audit_operator.render.world import Identity, Invalid, Resources, identity_of
from audit_operator.resources.load import Resource, ResourceError, load_resource, to_document

logger = logging.getLogger(__name__)

NAME: Final = "audit-operator-accepted"
_DATA: Final = "resources.json.gz"

_PER_SHARD: Final = 500
"""Resources in one ConfigMap, for which most AuditPolicies need less than 2 kB each, packed …"""
_LARGEST: Final = CONFIG_MAP_LIMIT * 4 // 3
"""… and characters of base64 in one. Where some are much larger, there are more ConfigMaps …"""
_MOST_SHARDS: Final = 4096
"""… but no more than so many."""


LastGood = Mapping[Identity, Resource | Object]
"""The last valid versions; as documents where they come from the cluster, for hardly any is ever needed."""


def current(seen: Iterable[Seen], last_good: LastGood) -> Resources:
    """The resources there are; of an invalid one the last good version, if it is known and of the same object."""
    items: list[Resource | Invalid] = []
    for each in seen:
        if each.resource is not None:
            items.append(each.resource)
            continue
        good = _loaded(last_good.get(each.identity))
        if good is not None and good.metadata.uid != each.uid:
            good = None  # deleted and made anew: nobody accepted this one
        items.append(
            Invalid(identity=each.identity, problems=each.problems, generation=each.generation, last_good=good)
        )
    return Resources.of(items)


def accepted(resources: Resources, refused: Collection[Identity] = ()) -> dict[Identity, Resource]:
    """What is in force: every valid resource, and the last good version of the others, but what does not count."""
    backend = (resources.backend,) if resources.backend else ()
    found = {identity_of(each): each for each in (*resources.policies, *resources.sinks, *backend)}
    return {identity: resource for identity, resource in found.items() if identity not in refused}


def is_shard(name: str) -> bool:
    """Whether a ConfigMap of ours is one of those that keep them."""
    return name.startswith(f"{NAME}-")


def written(accepted: Mapping[Identity, Resource], namespace: str) -> list[Object]:
    """The ConfigMaps that keep them. One change changes one of them, as long as their number stays.

    A resource that is too large for a ConfigMap of its own is in none: nobody else's is missing because of it.
    """
    kept = sorted(accepted.items())
    count = -(-len(kept) // _PER_SHARD)
    shards = _sharded(kept, count)
    while any(len(shard) > 1 and len(_packed(shard)) > _LARGEST for shard in shards) and count <= _MOST_SHARDS:
        count *= 2
        shards = _sharded(kept, count)
    objects = []
    for number, shard in enumerate(shards):
        if not shard:
            continue
        packed = _packed(shard)
        if len(packed) > _LARGEST:
            names = ", ".join(str(identity_of(each.value)) for each in shard)
            logger.warning(
                "too large to be remembered, so a broken version of it would have no last good one: %s", names
            )
            continue
        objects.append(new("v1", "ConfigMap", f"{NAME}-{number}", namespace, "operator", binaryData={_DATA: packed}))
    return objects


def _sharded(kept: Sequence[tuple[Identity, Resource]], count: int) -> list[tuple[Same[Resource], ...]]:
    shards: list[list[Same[Resource]]] = [[] for _ in range(count)]
    for identity, resource in kept:
        shards[zlib.crc32(str(identity).encode()) % count].append(Same(resource))
    return [tuple(shard) for shard in shards]


def read(objects: Iterable[Object]) -> dict[Identity, Object]:
    """What the ConfigMaps keep, by resource; of one resource in two of them the newer."""
    found: dict[Identity, Object] = {}
    for item in objects:
        for document in _unpacked(item):
            try:
                metadata = document["metadata"]
                identity = Identity(document["kind"], metadata.get("namespace", ""), metadata["name"])
                newer = identity not in found or _generation(found[identity]) < _generation(document)
            except (KeyError, TypeError, AttributeError):
                logger.warning("ConfigMap %s holds something that is no resource", item["metadata"]["name"])
                continue
            if newer:
                found[identity] = document
    return found


def _generation(document: Object) -> int:
    return int(document["metadata"].get("generation", 0))


def _loaded(good: Resource | Object | None) -> Resource | None:
    """The resource; None of a document that this version of the operator does not take any more."""
    if not isinstance(good, dict):
        return good
    try:
        return load_resource(good)
    except ResourceError as error:
        logger.warning("an accepted version is not valid for this operator any more: %s", error)
        return None


@lru_cache(maxsize=64)
def _packed(resources: tuple[Same[Resource], ...]) -> str:
    text = f"[{','.join(map(_text, resources))}]"
    return encoded(gzip.compress(text.encode(), compresslevel=6, mtime=0))


@lru_cache(maxsize=8192)  # writing all of a thousand anew takes longer than a pass may
def _text(resource: Same[Resource]) -> str:
    return json.dumps(to_document(resource.value), sort_keys=True, separators=(",", ":"))


def _unpacked(item: Object) -> list[Object]:
    try:
        packed = base64.b64decode((item.get("binaryData") or {})[_DATA])
        documents = json.loads(gzip.decompress(packed))
    except (KeyError, ValueError, OSError, EOFError, zlib.error) as error:
        logger.warning("ConfigMap %s cannot be read: %s", item["metadata"]["name"], error)
        return []
    return documents if isinstance(documents, list) else []
