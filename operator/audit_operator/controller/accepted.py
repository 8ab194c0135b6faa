"""The last valid version of every resource, kept in the cluster, so that a bad change takes nothing out of force.

A resource can become invalid under a running operator (an old CRD, a validation that was turned off) and under a new
one (a stricter version). Either way its last good version stays, also when the operator restarts meanwhile.
"""

import base64
import gzip
import json
import logging
import zlib
from collections.abc import Iterable, Mapping
from typing import Final

from audit_operator.controller.watching import Seen
from audit_operator.render.objects import Object, encoded, new
from audit_operator.render.world import Identity, Invalid, Resources, identity_of
from audit_operator.resources.load import Resource, ResourceError, load_resource, to_document

logger = logging.getLogger(__name__)

NAME: Final = "audit-operator-accepted"
_DATA: Final = "resources.json.gz"

_PER_SHARD: Final = 500
"""Resources in one ConfigMap, which takes 1 MiB: the largest AuditPolicies need some 2 kB each, packed."""


def current(seen: Iterable[Seen], last_good: Mapping[Identity, Resource]) -> Resources:
    """The resources there are; of an invalid one the last good version, if it is known and of the same object."""
    items: list[Resource | Invalid] = []
    for each in seen:
        if each.resource is not None:
            items.append(each.resource)
            continue
        good = last_good.get(each.identity)
        if good is not None and good.metadata.uid != each.uid:
            good = None  # deleted and made anew: nobody accepted this one
        items.append(
            Invalid(identity=each.identity, problems=each.problems, generation=each.generation, last_good=good)
        )
    return Resources.of(items)


def accepted(resources: Resources) -> dict[Identity, Resource]:
    """What is in force: every valid resource, and the last good version of the others."""
    backend = (resources.backend,) if resources.backend else ()
    return {identity_of(each): each for each in (*resources.policies, *resources.sinks, *backend)}


def is_shard(name: str) -> bool:
    """Whether a ConfigMap of ours is one of those that keep them."""
    return name.startswith(f"{NAME}-")


def written(accepted: Mapping[Identity, Resource], namespace: str) -> list[Object]:
    """The ConfigMaps that keep them. One change changes one of them."""
    count = -(-len(accepted) // _PER_SHARD)
    shards: list[list[Object]] = [[] for _ in range(count)]
    for identity, resource in sorted(accepted.items()):
        shards[zlib.crc32(str(identity).encode()) % count].append(to_document(resource))
    return [
        new("v1", "ConfigMap", f"{NAME}-{number}", namespace, "operator", binaryData={_DATA: _packed(documents)})
        for number, documents in enumerate(shards)
        if documents
    ]


def read(objects: Iterable[Object]) -> dict[Identity, Resource]:
    """What the ConfigMaps keep; of one resource in two of them the newer. What this version cannot read is left out."""
    found: dict[Identity, Resource] = {}
    for item in objects:
        for document in _unpacked(item):
            try:
                resource = load_resource(document)
            except ResourceError as error:
                logger.warning("an accepted version is not valid for this operator any more: %s", error)
                continue
            identity = identity_of(resource)
            if identity not in found or found[identity].metadata.generation < resource.metadata.generation:
                found[identity] = resource
    return found


def _packed(documents: list[Object]) -> str:
    text = json.dumps(documents, sort_keys=True, separators=(",", ":"))
    return encoded(gzip.compress(text.encode(), compresslevel=6, mtime=0))


def _unpacked(item: Object) -> list[Object]:
    try:
        packed = base64.b64decode((item.get("binaryData") or {})[_DATA])
        documents = json.loads(gzip.decompress(packed))
    except (KeyError, ValueError, OSError, EOFError, zlib.error) as error:
        logger.warning("ConfigMap %s cannot be read: %s", item["metadata"]["name"], error)
        return []
    return documents if isinstance(documents, list) else []
