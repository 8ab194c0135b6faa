"""What sinks refer to in Secrets and ConfigMaps: which keys there are, and copying them to where receivers read.

Contents pass through and are dropped. Whether something changed is asked for by metadata alone, one object at a time:
listing or watching other namespaces' Secrets would need the right to read them all.
"""

import asyncio
import base64
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from audit_operator.controller.children import TYPES
from audit_operator.controller.cluster import ApiError, Cluster
from audit_operator.render.program import Credential, Reference

logger = logging.getLogger(__name__)

_PERIOD: Final = 5.0
"""Seconds in which each of few references is looked at once."""
_PER_SECOND: Final = 20.0
"""Requests; with more than `_PERIOD` times as many references, a round takes longer."""


class _Found(NamedTuple):
    resource_version: str
    keys: frozenset[str]


class References:
    """The Secrets and ConfigMaps that sinks refer to. ``wake`` is called when one appears, changes or goes."""

    def __init__(self, cluster: Cluster, wake: Callable[[], None]) -> None:
        self._cluster = cluster
        self._wake = wake
        self._found: dict[Reference, _Found | None] = {}
        self.period = _PERIOD
        self.denied: dict[Reference, str] = {}
        """Those the operator may not read, with what the API server says."""

    def known(self) -> dict[Reference, frozenset[str]]:
        """The keys of what exists. What may not be read counts as there: whether it is, receivers will see."""
        return {reference: found.keys for reference, found in self._found.items() if found is not None}

    async def follow(self, wanted: Iterable[Reference]) -> None:
        """Look at those that are new, and forget those that nobody refers to any more."""
        wanted = set(wanted)
        for reference in self._found.keys() - wanted:
            del self._found[reference]
            self.denied.pop(reference, None)
        new = sorted(wanted - self._found.keys())
        for start in range(0, len(new), _AT_ONCE):
            await asyncio.gather(*(self._look(reference) for reference in new[start : start + _AT_ONCE]))

    async def poll(self) -> None:
        """Look at each again and again, for ever."""
        while True:
            followed = sorted(self._found)
            pause = max(self.period / (len(followed) or 1), 1 / _PER_SECOND)
            for reference in followed:
                await asyncio.sleep(pause)
                before = self._found.get(reference), self.denied.get(reference)
                if reference in self._found:
                    await self._look(reference)
                    if (self._found.get(reference), self.denied.get(reference)) != before:
                        self._wake()
            if not followed:
                await asyncio.sleep(self.period)

    def version(self, references: Iterable[Reference]) -> str:
        """A short name for the state that these are in: equal as long as none of them changes."""
        states = [(reference, self._found.get(reference)) for reference in sorted(references)]
        return hashlib.sha256(repr(states).encode()).hexdigest()[:32]

    async def contents(self, credentials: Iterable[Credential]) -> dict[str, bytes]:
        """The values by the file that receivers find them in; what is missing is left out. Raises ApiError."""
        by_object: dict[Reference, list[Credential]] = {}
        for credential in credentials:
            reference = Reference(credential.kind, credential.namespace, credential.name)
            by_object.setdefault(reference, []).append(credential)
        values: dict[str, bytes] = {}
        for reference, wanted in by_object.items():
            if self._found.get(reference) is None:
                continue
            found = await self._cluster.get(TYPES[reference.kind], reference.namespace, reference.name)
            data = _values(found or {})
            values |= {credential.file: data[credential.key] for credential in wanted if credential.key in data}
        return values

    async def _look(self, reference: Reference) -> None:
        of, known = TYPES[reference.kind], self._found.get(reference)
        try:
            metadata = await self._cluster.get_metadata(of, reference.namespace, reference.name)
            self.denied.pop(reference, None)
            if metadata is None:
                self._found[reference] = None
            elif known is None or known.resource_version != metadata["resourceVersion"]:
                found = await self._cluster.get(of, reference.namespace, reference.name)
                self._found[reference] = (
                    None if found is None else _Found(found["metadata"]["resourceVersion"], frozenset(_values(found)))
                )
        except ApiError as error:
            self._found.setdefault(reference, None)
            if error.status == 403:
                self.denied[reference] = str(error)
            else:
                logger.warning("%s; what was known of it stays", error)


_AT_ONCE: Final = 16


def _values(found: Mapping[str, object]) -> dict[str, bytes]:
    data: dict[str, bytes] = {}
    binary = "data" if found.get("kind") == "Secret" else "binaryData"
    for key, value in (found.get(binary) or {}).items():  # type: ignore[attr-defined]
        data[key] = base64.b64decode(value)
    if binary == "binaryData":
        data |= {key: str(value).encode() for key, value in (found.get("data") or {}).items()}  # type: ignore[attr-defined]
    return data
