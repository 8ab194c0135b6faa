"""The receiver's own certificate and the CAs of its clients, taken up anew when their files change."""

import logging
import ssl
from pathlib import Path

logger = logging.getLogger(__name__)

_FILES = ("tls.crt", "tls.key", "ca.crt")


class Certificates:
    """``tls.crt``, ``tls.key`` and ``ca.crt`` in a folder, as a Secret of type kubernetes.io/tls is mounted.

    ``context`` is for the next connection; None until the files make one. Connections that are open stay.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: object = None
        self.context: ssl.SSLContext | None = None
        self.error = ""

    def look(self) -> None:
        """Take up what has changed. What cannot be used is said, and the one before stays. Blocking, some µs."""
        try:
            found = [(self._folder / name).stat() for name in _FILES]
            seen = [(each.st_mtime_ns, each.st_size, each.st_ino) for each in found]
            if seen == self._seen:
                return
            self.context = self._made()
        except OSError as error:  # ssl.SSLError is one
            self._say(f"{self._folder}: {error.strerror or error}")
        except ValueError as error:
            self._say(f"{self._folder}: {error}")
        else:
            self._seen = seen
            self.error = ""
            logger.info("certificates of %s are in use", self._folder)

    def _made(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["http/1.1"])
        # A handshake on an open connection costs us as much as the first one, and no deadline would be on it.
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.load_verify_locations(self._folder / "ca.crt")
        context.load_cert_chain(self._folder / "tls.crt", self._folder / "tls.key")
        return context

    def _say(self, error: str) -> None:
        if error != self.error:
            logger.error("certificates cannot be used, those before stay: %s", error)
        self.error = error
