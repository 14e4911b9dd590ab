"""The caller's address behind proxies: what a stranger writes into a header never becomes it."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidegate_edge.addresses import HOPS_MAX, Proxies, read_address

TRUSTED = ("10.0.0.0/8", "fd00::/16", "192.0.2.7")
PROXY = "10.0.0.1"
XFF, FORWARDED = b"x-forwarded-for", b"forwarded"

addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(
    lambda found: found.ipv4_mapped or found if isinstance(found, IPv6Address) else found
)
strangers = addresses.filter(lambda one: not any(one in ip_network(network) for network in TRUSTED))
proxies = st.sampled_from([PROXY, "10.255.0.9", "fd00::1", "192.0.2.7"]).map(ip_address)
garbage = st.binary(max_size=80).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b""))
forgeries = st.one_of(
    garbage,
    st.lists(addresses, max_size=4).map(lambda many: ", ".join(map(str, many)).encode()),
    st.sampled_from(
        [
            b"",
            b",",
            b'"',
            b'for="',
            b"for=10.0.0.1",
            b'for=10.0.0.1;x="',
            b'for=10.0.0.1, for="[fd00::1]',
            b"for=10.0.0.1\\",
            b'for=10.0.0.1;by="a\\',
        ]
    ),
)


def x_forwarded_for(address: IPv4Address | IPv6Address, with_port: bool) -> bytes:
    """As proxies write it."""
    if not with_port:
        return str(address).encode()
    return (f"[{address}]:4711" if address.version == 6 else f"{address}:4711").encode()


def forwarded(address: IPv4Address | IPv6Address, with_port: bool) -> bytes:
    port = ":4711" if with_port else ""
    if address.version == 6:
        return f'for="[{address}]{port}";proto=https'.encode()
    return f'by=10.0.0.1;FOR="{address}{port}"'.encode() if with_port else f"for={address}".encode()


@given(st.text(max_size=60), garbage, st.sampled_from(["x-forwarded-for", "forwarded"]))
def test_whatever_comes_the_result_is_an_address_or_nothing(peer: str, value: bytes, header: str) -> None:
    behind = Proxies(TRUSTED, header)
    for at in (peer, PROXY):
        told = behind.address(at, {header.encode(): value})
        assert told == "" or str(ip_address(told)) == told


@given(strangers, forgeries)
def test_whoever_comes_without_a_proxy_is_believed_nothing(stranger: IPv4Address | IPv6Address, forged: bytes) -> None:
    for header in (XFF, FORWARDED):
        told = Proxies(TRUSTED, header.decode()).address(str(stranger), {XFF: forged, FORWARDED: forged})
        assert told == str(stranger)


@given(forgeries, strangers, st.lists(proxies, max_size=3), st.booleans())
@example(b"10.0.0.1", ip_address("203.0.113.9"), [], False)
def test_what_a_caller_forges_in_front_of_its_proxies_counts_for_nothing(
    forged: bytes, caller: IPv4Address | IPv6Address, chain: list[IPv4Address | IPv6Address], with_port: bool
) -> None:
    written = [x_forwarded_for(one, with_port) for one in (caller, *chain)]
    value = b", ".join([*([forged] if forged else []), *written])
    told = Proxies(TRUSTED, "x-forwarded-for").address(PROXY, {XFF: value, FORWARDED: b"for=198.51.100.1"})
    assert told == str(caller)


@given(forgeries, strangers, st.lists(proxies, max_size=3), st.booleans())
def test_a_forged_forwarded_header_counts_for_nothing_and_need_not_be_readable(
    forged: bytes, caller: IPv4Address | IPv6Address, chain: list[IPv4Address | IPv6Address], with_port: bool
) -> None:
    written = [forwarded(one, with_port) for one in (caller, *chain)]
    behind = Proxies(TRUSTED, "forwarded")
    assert behind.address(PROXY, {FORWARDED: b", ".join(written), XFF: b"198.51.100.1"}) == str(caller)
    assert behind.address(PROXY, {FORWARDED: b", ".join([forged, *written])}) == str(caller)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"203.0.113.9", "203.0.113.9"),
        (b"1.2.3.4, 203.0.113.9, 10.1.1.1", "203.0.113.9"),
        (b"203.0.113.9 ,\t10.1.1.1", "203.0.113.9"),
        (b"::ffff:203.0.113.9", "203.0.113.9"),
        (b"2001:DB8:0::1", "2001:db8::1"),
        (b"[2001:db8::1]", "2001:db8::1"),
        (b"[2001:db8::1]:443", "2001:db8::1"),
        (b"fe80::1%eth0", "fe80::1"),
        (b"10.1.1.1", ""),  # of proxies alone: whom they were called by is not said
        (b"", ""),
        (b"1.2.3.4, unknown, 10.1.1.1", ""),
        (b"1.2.3.4, 010.1.1.1", ""),
        (b"1.2.3.4,", ""),
        (b"1.2.3.4, 10.1.1.1:", ""),
        (b"203.0.113.9:99999999", ""),
        (b"2001:db8::1]:443", ""),
        (b", ".join([b"203.0.113.9", *[b"10.1.1.1"] * HOPS_MAX]), ""),
        (b", ".join([b"203.0.113.9", *[b"10.1.1.1"] * (HOPS_MAX - 1)]), "203.0.113.9"),
    ],
)
def test_the_nearest_that_is_not_trusted_is_the_caller(value: bytes, told: str) -> None:
    assert Proxies(TRUSTED, "x-forwarded-for").address(PROXY, {XFF: value}) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"for=203.0.113.9", "203.0.113.9"),
        (b'For="203.0.113.9:80";proto=http;by=10.0.0.1', "203.0.113.9"),
        (b'for="[2001:db8::1]:80" , for=10.1.1.1', "2001:db8::1"),
        (b"for=1.2.3.4, for=203.0.113.9;proto=https, for=10.1.1.1", "203.0.113.9"),
        (b"for=1.2.3.4, for=_hidden", ""),
        (b"for=1.2.3.4, for=unknown", ""),
        (b"for=1.2.3.4, proto=https", ""),
        (b"for=1.2.3.4;for=203.0.113.9", ""),
        (b'for=1.2.3.4, for="203.0.113.9', ""),
        (b"for=1.2.3.4,,for=203.0.113.9", "203.0.113.9"),
        (b"for=203.0.113.9,,for=10.1.1.1", ""),
        (b"@@, for=203.0.113.9", "203.0.113.9"),
        (b'for="x, for=203.0.113.9', "203.0.113.9"),
        (b'for="x, for="203.0.113.9:80"', "203.0.113.9"),
        (b"@@, for=10.1.1.1", ""),
        (b"for=203.0.113.9 @@, for=10.1.1.1", ""),
        (b"@@;for=203.0.113.9", ""),
        (b'for=203.0.113.9;by="a, \\"b\\";c=\\\\"', "203.0.113.9"),
        (b'for=203.0.113.9;by="a\\"', ""),
        (b'"203.0.113.9"', ""),
        (b'for=203.0.113.9, "', ""),
        (b"for=203.0.113.9,", ""),
        (b"for=203.0.113.9 ;\tproto=https , for=10.1.1.1", "203.0.113.9"),
        (b", ".join([b"for=203.0.113.9", *[b"for=10.1.1.1"] * HOPS_MAX]), ""),
        (b", ".join([b"for=203.0.113.9", *[b"for=10.1.1.1"] * (HOPS_MAX - 1)]), "203.0.113.9"),
        (b"203.0.113.9", ""),
        (b"", ""),
    ],
)
def test_forwarded_is_read_as_its_rfc_says(value: bytes, told: str) -> None:
    assert Proxies(TRUSTED, "forwarded").address(PROXY, {FORWARDED: value}) == told


def test_without_trusted_proxies_the_connection_s_peer_is_the_caller() -> None:
    for header in (XFF, FORWARDED):
        behind = Proxies((), header.decode())
        assert behind.address("127.0.0.1", {XFF: b"10.0.0.1", FORWARDED: b"for=10.0.0.1"}) == "127.0.0.1"
        assert behind.address("", {XFF: b"10.0.0.1"}) == ""


def test_a_proxy_that_does_not_say_who_called_it_is_not_taken_for_the_caller() -> None:
    for header in (XFF, FORWARDED):
        assert Proxies(TRUSTED, header.decode()).address(PROXY, {}) == ""


def test_addresses_are_read_in_every_writing() -> None:
    assert [str(read_address(text)) for text in ("::1", "[::1]:80", "1.2.3.4:5", "::ffff:1.2.3.4")] == [
        "::1",
        "::1",
        "1.2.3.4",
        "1.2.3.4",
    ]
    assert [read_address(text) for text in ("", "x", "1.2.3", "１.2.3.4", "1.2.3.4/8", "[1.2.3.4", "%eth0")] == [
        None
    ] * 7
