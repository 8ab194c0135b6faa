"""Where a tenant's sink may connect to: by the address that is reached in the end, however it is written."""

import ipaddress
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_operator.receiver.reach import ANYWHERE, REFUSED_TO_TENANTS, Reach
from audit_operator.render.program import TenantProgram

TENANT = Reach(tenant=True)

REFUSED = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.251",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "ff02::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::7f00:1",
    "::ffff:0:127.0.0.1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:1:2:3:4:5:6",
    # What getaddrinfo would make of these nobody has asked yet where a host looks like a number.
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "0",
    "localhost",
    "",
]


@pytest.mark.parametrize("address", REFUSED)
def test_what_is_the_receiver_its_node_or_a_cloud_is_refused_in_every_form(address: str) -> None:
    assert TENANT.refusal(address)
    assert Reach(("0.0.0.0/0", "::/0"), tenant=True).refusal(address), "allowing everything names none of these"
    assert not ANYWHERE.refusal(address), "the platform's sinks go where its administrators say"


@pytest.mark.parametrize("address", ["203.0.113.7", "10.1.2.3", "2001:db8::1", "64:ff9b::cb00:7107", "134744072"])
def test_all_else_is_reached_unless_networks_say_otherwise(address: str) -> None:
    assert TENANT.refusal(address) == ""


def test_the_addresses_of_the_machine_itself_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 9))  # sends nothing: it asks the kernel which address would be ours
        except OSError:
            pytest.skip("this machine has no address but loopback")
        own = probe.getsockname()[0]
    assert "the receiver's own address" in TENANT.refusal(own)
    assert "the receiver's own address" in TENANT.refusal(f"::ffff:{own}")


def test_the_narrowest_network_decides_and_of_equals_the_refused() -> None:
    reach = Reach(("10.0.0.0/8", "10.96.5.0/24"), ("10.96.0.0/12", "10.7.0.0/16", "10.8.0.1/32"), tenant=True)
    assert reach.refusal("10.1.2.3") == ""
    assert "10.96.0.0/12" in reach.refusal("10.96.0.1")
    assert reach.refusal("10.96.5.1") == ""
    assert reach.refusal("10.8.0.1")
    assert "none of the networks" in reach.refusal("203.0.113.7")
    assert "none of the networks" in reach.refusal("2001:db8::1")
    assert Reach(("10.0.0.0/8",), ("10.0.0.0/8",), tenant=True).refusal("10.1.1.1")
    # Only administrators write networks: what they name themselves they mean.
    assert Reach(("127.0.0.1/32",), tenant=True).refusal("127.0.0.1") == ""
    assert Reach(("127.0.0.1/32",), tenant=True).refusal("127.0.0.2")


def test_an_allowed_ipv4_network_is_reached_by_every_way_that_ends_there_and_no_other() -> None:
    reach = Reach(("203.0.113.0/24",), tenant=True)
    assert [reach.refusal(way) for way in ("203.0.113.7", "::ffff:203.0.113.7", "64:ff9b::203.0.113.7")] == [""] * 3
    assert all(reach.refusal(way) for way in ("198.51.100.7", "::ffff:198.51.100.7", "64:ff9b::198.51.100.7"))


def test_the_platforms_addresses_are_refused_like_the_always_refused() -> None:
    program = TenantProgram(root_namespace="audit-system", journal_bytes=1, events_per_second=1)
    reach = Reach.of_tenants(program, ("10.96.0.1/32",))
    assert reach.refusal("10.96.0.1")
    assert reach.refusal("10.96.0.2") == ""
    assert Reach.of_tenants(None).refusal("127.0.0.1"), "a program of an older version says nothing of tenants"


V4 = st.ip_addresses(v=4)


@settings(deadline=None)
@given(address=V4, networks=st.lists(st.tuples(V4, st.integers(0, 32)), max_size=4))
def test_no_way_to_write_an_address_changes_what_it_means(
    address: ipaddress.IPv4Address, networks: list[tuple[ipaddress.IPv4Address, int]]
) -> None:
    refused = tuple(f"{each}/{length}" for each, length in networks)
    reach = Reach(refused=refused, tenant=True)
    number = int(address)
    octets = str(address).split(".")
    forms = [
        str(number),
        hex(number),
        ".".join(f"0{int(octet):o}" for octet in octets),
        ".".join(map(hex, map(int, octets))),
        f"{octets[0]}.{number & 0xFFFFFF}",
        f"::ffff:{address}",
        f"64:ff9b::{address}",
        f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1",
    ]
    assert {bool(reach.refusal(form)) for form in forms} == {bool(reach.refusal(str(address)))}


@settings(deadline=None)
@given(data=st.data(), network=st.sampled_from(REFUSED_TO_TENANTS))
def test_nothing_in_an_always_refused_network_is_reached(data: st.DataObject, network: str) -> None:
    inside = ipaddress.ip_network(network)
    offset = data.draw(st.integers(0, inside.num_addresses - 1))
    assert TENANT.refusal(str(inside[offset]))
