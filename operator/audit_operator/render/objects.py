"""What all objects have in common: names, labels, an owner, revisions, and whether the cluster serves their kind."""

import base64
import hashlib
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from audit_operator import __version__

if TYPE_CHECKING:
    from audit_operator.resources.auditbackend import AuditBackend

Object = dict[str, Any]
"""A Kubernetes object on the wire."""

COMPONENT: Final = "app.kubernetes.io/component"

REVISION: Final = "audit-operator.dev/revision"
"""Annotation of an object that changes: which revision it holds now."""
REVISION_OF: Final = "audit-operator.dev/revision-of"
"""Label of an immutable ConfigMap that keeps one revision: of what."""

CONFIG_MAP_LIMIT: Final = 1_000_000
"""Bytes of data that we put into one ConfigMap; the API server takes 1 MiB."""


def labels_of(component: str) -> dict[str, str]:
    """Our labels on whatever belongs to ``component``: ``receiver`` or ``apiserver``."""
    return {
        "app.kubernetes.io/name": "audit-operator",
        COMPONENT: component,
        "app.kubernetes.io/part-of": "audit-operator",
        "app.kubernetes.io/managed-by": "audit-operator",
    }


def text_hash(text: str) -> str:
    """A short name for a text: equal texts, equal names."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def new(api_version: str, kind: str, name: str, namespace: str, component: str, **rest: Any) -> Object:
    """An object with our labels."""
    labels = labels_of(component) | {"app.kubernetes.io/version": __version__}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def annotated(item: Object, annotations: Mapping[str, str]) -> Object:
    """The object with these annotations."""
    if annotations:
        item["metadata"]["annotations"] = dict(sorted(annotations.items()))
    return item


def revision(name: str, namespace: str, component: str, *, of: str, hash_: str, **content: Mapping[str, str]) -> Object:
    """The immutable ConfigMap ``name-hash_``, which keeps what ``name`` holds now; ``content``: data or binaryData.

    Whoever applies it creates it or leaves it alone: the content follows from the name, but for the compressor's mood.
    """
    item = new("v1", "ConfigMap", f"{name}-{hash_}", namespace, component, immutable=True, **content)
    # No version: the next operator must find its revisions as it would make them.
    item["metadata"]["labels"] = labels_of(component) | {REVISION_OF: of}
    return item


def is_revision(item: Object) -> bool:
    """Whether the object keeps a revision."""
    return REVISION_OF in item["metadata"]["labels"]


def compressed(text: str) -> str:
    """gzip of the text as the API takes bytes; without a time, so that equal texts stay equal."""
    return encoded(zlib.compress(text.encode(), 6, wbits=31))


def encoded(data: bytes | str) -> str:
    """Base64, as Secrets and binaryData hold it."""
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def owned(items: Iterable[Object], owner: "AuditBackend | None") -> tuple[Object, ...]:
    """The objects with ``owner`` as their controller, so that they go with it; one without uid is in no cluster yet."""
    found = tuple(items)
    if owner is None or not owner.metadata.uid:
        return found
    reference = {
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": owner.metadata.name,
        "uid": owner.metadata.uid,
        "controller": True,  # without blockOwnerDeletion, which would take a right on the owner's finalizers
    }
    for item in found:
        item["metadata"]["ownerReferences"] = [reference]
    return found


def is_served(item: Object, served: Collection[tuple[str, str]] | None) -> bool:
    """Whether the cluster serves objects of this kind; ``served`` None: nobody asked it, so it does."""
    return served is None or (item["apiVersion"], item["kind"]) in served
