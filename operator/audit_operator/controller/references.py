"""What sinks refer to in Secrets and ConfigMaps: which keys there are, and copying them to where receivers read.

Contents pass through and are dropped. Whether something changed is asked for by metadata alone, one object at a time:
listing or watching other namespaces' Secrets would need the right to read them all.
"""

import asyncio
import base64
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from audit_operator.controller.children import TYPES
from audit_operator.controller.cluster import ApiError, Cluster
from audit_operator.render.program import Credential, Reference

logger = logging.getLogger(__name__)

_PERIOD: Final = 5.0
"""Seconds in which each of few references is looked at once."""
_PER_SECOND: Final = 20.0
"""Requests for the platform's, and as many for tenants'; with more references a round takes longer."""
_IDLE: Final = 0.25
"""Seconds, where all have been looked at."""


class _Found(NamedTuple):
    """``keys``: with the bytes of their values."""

    resource_version: str
    keys: Mapping[str, int]


class Contents(NamedTuple):
    """``values``: by the file that receivers find them in; what does not exist is not there. ``unknown``: files whose
    values could not be had now: what receivers have of them stays. ``failure``: why, of the first.
    """

    values: dict[str, bytes]
    unknown: frozenset[str]
    failure: str = ""


class References:
    """The Secrets and ConfigMaps that sinks refer to. ``wake`` is called when one appears, changes or goes.

    Those in the platform's namespace ``root`` are looked at apart from all others: as often, however many there are of
    tenants. And among tenants one namespace after the other has its turn, however many it refers to.
    """

    def __init__(self, cluster: Cluster, wake: Callable[[], None], root: str = "") -> None:
        self._cluster = cluster
        self._wake = wake
        self._root = root
        self._found: dict[Reference, _Found | None] = {}
        self.period = _PERIOD
        self.denied: dict[Reference, str] = {}
        """Those the operator may not read, with what the API server says."""

    def known(self) -> dict[Reference, Mapping[str, int]]:
        """The keys of what exists, with the bytes of their values."""
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
        await asyncio.gather(self._poll(platform=True), self._poll(platform=False))

    async def _poll(self, *, platform: bool) -> None:
        turns: dict[str, _Turn] = {}
        while True:
            by_namespace: dict[str, list[Reference]] = {}
            for reference in sorted(self._found):
                if (reference.namespace == self._root) == platform:
                    by_namespace.setdefault(reference.namespace, []).append(reference)
            turns = {namespace: turns.get(namespace, _Turn(self.period)) for namespace in by_namespace}
            idle = True
            for namespace, references in by_namespace.items():
                if (due := turns[namespace].next(references, time.monotonic())) is not None:
                    idle = False
                    await asyncio.sleep(1 / _PER_SECOND)
                    await self._look_again(due)
            if idle:
                await asyncio.sleep(_IDLE)

    async def _look_again(self, reference: Reference) -> None:
        before = self._found.get(reference), self.denied.get(reference)
        if reference in self._found:
            await self._look(reference)
            if (self._found.get(reference), self.denied.get(reference)) != before:
                self._wake()

    def version(self, references: Iterable[Reference]) -> str:
        """A short name for the state that these are in: equal as long as none of them changes."""
        states = [(reference, self._found.get(reference)) for reference in sorted(references)]
        return hashlib.sha256(repr(states).encode()).hexdigest()[:32]

    async def contents(self, credentials: Iterable[Credential]) -> Contents:
        """What these stand for now. One that cannot be read, or has grown since its size was judged, costs the others
        nothing; it is looked at again soon.
        """
        by_object: dict[Reference, list[Credential]] = {}
        for credential in credentials:
            by_object.setdefault(credential.reference, []).append(credential)
        values: dict[str, bytes] = {}
        unknown: set[str] = set()
        failure = ""
        for reference, wanted in by_object.items():
            known = self._found.get(reference)
            if known is None:
                continue
            try:
                found = await self._cluster.get(TYPES[reference.kind], reference.namespace, reference.name)
            except ApiError as error:
                failure = failure or str(error)
                # Whoever looks next finds it changed, and calls for another pass.
                self._found[reference] = known._replace(resource_version="")
                unknown |= {credential.file for credential in wanted}
                continue
            data = _values(found or {})
            if any(len(data.get(each.key, b"")) > known.keys.get(each.key, 0) for each in wanted):
                self._found[reference] = _seen(found or {}, data)
                self._wake()
                unknown |= {credential.file for credential in wanted}
                continue
            values |= {credential.file: data[credential.key] for credential in wanted if credential.key in data}
        return Contents(values, frozenset(unknown), failure)

    async def _look(self, reference: Reference) -> None:
        of, known = TYPES[reference.kind], self._found.get(reference)
        try:
            metadata = await self._cluster.get_metadata(of, reference.namespace, reference.name)
            self.denied.pop(reference, None)
            if metadata is None:
                self._found[reference] = None
            elif known is None or known.resource_version != metadata["resourceVersion"]:
                found = await self._cluster.get(of, reference.namespace, reference.name)
                self._found[reference] = None if found is None else _seen(found, _values(found))
        except ApiError as error:
            self._found.setdefault(reference, None)
            if error.status == 403:
                self.denied[reference] = str(error)
            else:
                logger.warning("%s; what was known of it stays", error)


_AT_ONCE: Final = 16


class _Turn:
    """Where the looks at one namespace are: at each of its references once in a period, if there is time for it."""

    def __init__(self, period: float) -> None:
        self._period = period
        self._began = -period
        self._next = 0

    def next(self, references: Sequence[Reference], now: float) -> Reference | None:
        """Which one to look at; None: all have been looked at, and not long ago."""
        if not 0 < self._next < len(references):
            if now - self._began < self._period:
                return None
            self._began, self._next = now, 0
        self._next += 1
        return references[self._next - 1]


def _seen(found: Mapping[str, Any], data: Mapping[str, bytes]) -> _Found:
    return _Found(found["metadata"]["resourceVersion"], {key: len(value) for key, value in sorted(data.items())})


def _values(found: Mapping[str, object]) -> dict[str, bytes]:
    data: dict[str, bytes] = {}
    binary = "data" if found.get("kind") == "Secret" else "binaryData"
    for key, value in (found.get(binary) or {}).items():  # type: ignore[attr-defined]
        data[key] = base64.b64decode(value)
    if binary == "binaryData":
        data |= {key: str(value).encode() for key, value in (found.get("data") or {}).items()}  # type: ignore[attr-defined]
    return data
