"""Who connects: the names in a client's certificate, and what they allow.

A certificate of our CA says no more than that the CA has signed it, and with an issuer of a whole cluster anybody may
have one. So what counts are names in a file, beside the program and never pushed.
"""

import logging
from collections.abc import Hashable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple

from audit_operator.render.report import OPERATOR_NAME, ClientNames, decoded_clients

logger = logging.getLogger(__name__)

WITHOUT_FILE: Final = ClientNames(operator_by_common_name=True)
"""An operator that writes no such file is of a version whose certificates have a common name only."""


class Role(Enum):
    """What a client may do."""

    API_SERVER = "API servers"
    OPERATOR = "the operator"

    def __str__(self) -> str:
        return self.value


class Client(NamedTuple):
    """Whoever has connected. ``name``: what it is called in metrics, in the status, and where its events are told from
    others'. ``network``: where it is.
    """

    name: str
    common_name: str
    names: frozenset[str]
    uris: frozenset[str]
    network: str

    @classmethod
    def of(cls, certificate: Mapping[str, Any] | None, network: str) -> "Client":
        """By what `ssl.SSLSocket.getpeercert` says."""
        found = certificate or {}
        subject = [str(value) for part in found.get("subject", ()) for key, value in part if key == "commonName"]
        others = [(str(kind), str(value)) for kind, value in found.get("subjectAltName", ())]
        common_name = subject[0] if subject else ""
        uris = frozenset(value for kind, value in others if kind == "URI")
        names = frozenset({value for kind, value in others if kind == "DNS"}) | uris
        return cls(common_name or min(names, default=""), common_name, names, uris, network)

    @property
    def key(self) -> Hashable:
        """Whose memory and time it uses: API servers may all have one certificate, but not one address."""
        return self.name, self.network

    @property
    def shown(self) -> str:
        """Its names, for people, of whom they may have been chosen to be read by."""
        names = sorted({name for name in (self.common_name, *self.names) if name})
        return ", ".join(repr(name[:100]) for name in names[:4])

    def __str__(self) -> str:
        return f"{self.shown or 'no name'} at {self.network or 'an unknown address'}"


class Clients:
    """The file of names, taken up anew when it changes. What cannot be read is said, and the names before stay."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: object = None
        self._error = ""
        self.names = WITHOUT_FILE

    def look(self) -> None:
        """Take up what has changed. Raises nothing. Blocking, some µs."""
        try:
            found = self._file.stat()
            version = (found.st_mtime_ns, found.st_size, found.st_ino)
            if version == self._seen:
                return
            names = decoded_clients(self._file.read_bytes())
        except FileNotFoundError:
            version, names = None, WITHOUT_FILE
        except (OSError, ValueError) as error:
            if self._error != str(error):
                logger.error("%s: cannot be used, the names before stay: %s", self._file, error)
            self._error = str(error)
            return
        self._seen, self._error = version, ""
        if names != self.names:
            logger.info("API servers are known by %s", ", ".join(names.api_servers) or "no name")
        self.names = names

    def role(self, client: Client) -> Role | None:
        """What it may do; None: nothing."""
        allowed = self.names
        if not client.uris.isdisjoint(allowed.operators):
            return Role.OPERATOR
        if client.common_name == OPERATOR_NAME and not client.uris and allowed.operator_by_common_name:
            return Role.OPERATOR
        if client.common_name in allowed.api_servers or not client.names.isdisjoint(allowed.api_servers):
            return Role.API_SERVER
        return None
