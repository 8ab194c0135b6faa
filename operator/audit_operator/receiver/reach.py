"""Which addresses a sink may connect to.

Of all networks that hold an address the narrowest decides; of two equal ones the administrators', refused before
allowed. So what is always refused to tenants stays refused when ``networks`` is 0.0.0.0/0, and is reached when
administrators name it, or a part of it, themselves.
"""

import ipaddress
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from audit_operator.render.program import TenantProgram

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

REFUSED_TO_TENANTS: Final = (
    "0.0.0.0/8",  # this host
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local; most clouds' metadata services
    "224.0.0.0/3",  # multicast, reserved, broadcast
    "100.100.100.200/32",  # metadata of Alibaba Cloud
    "168.63.129.16/32",  # of Azure's hosts
    "192.0.0.0/24",  # protocol assignments; metadata of Oracle Cloud
    "::/96",  # unspecified, loopback, IPv4-compatible
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::/32",  # metadata and credentials of AWS
    "fd20:ce::254/128",  # of Google Cloud
    "fd00:c1::a9fe:a9fe/128",  # of Oracle Cloud
    "fd00:42::42/128",  # of Scaleway
    "64:ff9b:1::/48",  # NAT64 inside a site (RFC 8215): where the IPv4 address in it stands, only the site knows
    "2001::/32",  # Teredo
)
"""The receiver itself and its node, what hands out the node's identity, and what is no single machine."""


class _Entry(NamedTuple):
    network: _Network
    precedence: int
    allowed: bool


@dataclass(frozen=True)
class Reach:
    """``networks``: allowed, empty for everything; ``refused``: not; CIDRs both. ``tenant``: what is always refused to
    tenants is, and ``own``, addresses that are no more theirs.
    """

    networks: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    tenant: bool = False
    own: tuple[str, ...] = ()
    _entries: tuple[_Entry, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        always = (*REFUSED_TO_TENANTS, *self.own) if self.tenant else ()
        entries = [
            _Entry(ipaddress.ip_network(text, strict=False), precedence, allowed)
            for texts, precedence, allowed in ((always, 0, False), (self.networks, 1, True), (self.refused, 2, False))
            for text in texts
        ]
        entries.sort(key=lambda entry: (entry.network.prefixlen, entry.precedence), reverse=True)
        object.__setattr__(self, "_entries", tuple(entries))

    @classmethod
    def of_tenants(cls, program: TenantProgram | None, own: tuple[str, ...] = ()) -> "Reach":
        """Of every sink in a tenant's namespace. ``own``: further addresses that belong to the platform."""
        if program is None:
            return cls(tenant=True, own=own)
        return cls(program.networks, program.refused_networks, tenant=True, own=own)

    @property
    def limited(self) -> bool:
        """Whether any address is out of it."""
        return self.tenant or bool(self.networks) or bool(self.refused)

    def refusal(self, address: str) -> str:
        """Why no connection may be made to this address; empty: it may. ``address``: in any form that the system's
        own functions take for one.
        """
        if not self.limited:
            return ""
        ip = _parsed(address)
        if ip is None:
            return f"{address} is no address"
        found: list[_Entry] = []
        for each in _meant(ip):
            entry = self._decided(each)
            if entry is not None and not entry.allowed:
                return f"{address} is in {entry.network}, where this sink may not connect to"
            if self.tenant and _is_here(each) and not (entry and entry.network.prefixlen == each.max_prefixlen):
                return f"{address} is the receiver's own address, where this sink may not connect to"
            found += [entry] if entry is not None else []
        if self.networks and not found:
            return (
                f"{address} is in none of the networks that this sink may connect to, "
                "spec.tenants.networks of the AuditBackend"
            )
        return ""

    def _decided(self, ip: _Address) -> _Entry | None:
        return next((entry for entry in self._entries if ip in entry.network), None)


ANYWHERE: Final = Reach()
"""For sinks of the platform."""


def _parsed(address: str) -> _Address | None:
    text = address.partition("%")[0]
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    try:
        # 2130706433, 0x7f.1 and 0177.0.0.1 are 127.0.0.1 to the system.
        return ipaddress.IPv4Address(socket.inet_aton(text))
    except (OSError, ValueError):
        return None


_LAST_BITS: Final = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::ffff:0:0:0/96")))
"""NAT64 and SIIT: the last 32 bits are the IPv4 address that is reached in the end."""


def _meant(ip: _Address) -> Iterator[_Address]:
    """The addresses that a connection to this one may end at."""
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            yield ip.ipv4_mapped  # there is no other way to it than by IPv4
            return
        if any(ip in network for network in _LAST_BITS):
            yield ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip.sixtofour is not None:
            yield ip.sixtofour
    yield ip


def _is_here(ip: _Address) -> bool:
    """Whether it is an address of this machine: only to those can a socket be bound, unless the machine is set to bind
    to any (ip_nonlocal_bind), as some load balancers are.
    """
    return _binds(ip) and not _binds(_NOWHERE[ip.version])


_NOWHERE: Final[Mapping[int, _Address]] = {
    4: ipaddress.IPv4Address("192.0.2.1"),
    6: ipaddress.IPv6Address("2001:db8::1"),
}
"""Of networks for documentation (RFC 5737, RFC 3849), which no machine has."""


def _binds(ip: _Address) -> bool:
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))
    except OSError:
        return False
    return True
