"""Keys, origins, limits and the bot list."""

from ipaddress import ip_network
from typing import NamedTuple

import pytest

from contracts.errors import UsageError
from service.http import Refused
from streams.collector.access import (
    Holder,
    Keys,
    Limits,
    authorise,
    caller_address,
    check_origin,
    is_bot,
    read_bot_list,
    retry_after_s,
)

KEYS = Keys(b"write", b"secret")


def status_of(
    *, authorization: str | None = None, query_key: str | None = None, secret_only: bool = False
) -> int | Holder:
    """Return the status of a refusal, or who was let in."""
    try:
        return authorise(KEYS, authorization=authorization, query_key=query_key, secret_only=secret_only)
    except Refused as refused:
        return refused.status


@pytest.mark.parametrize(
    ("authorization", "query_key", "secret_only", "expected"),
    [
        ("Bearer write", None, False, Holder.WRITE),
        ("bearer  write ", None, False, Holder.WRITE),
        ("Bearer secret", None, False, Holder.SECRET),
        ("Bearer secret", None, True, Holder.SECRET),
        (None, "write", False, Holder.WRITE),
        ("Bearer write", None, True, 401),
        (None, None, False, 401),
        (None, "", False, 401),
        ("", "write", False, 401),
        ("Bearer", None, False, 401),
        ("Basic write", None, False, 401),
        ("Bearer wrong", "write", False, 401),
        ("Bearer writ", None, False, 401),
        ("Bearer schlüssel", None, False, 401),
        (None, "wrong", False, 401),
        (None, "secret", False, 401),
        (None, "secret", True, 401),
    ],
)
def test_a_key_opens_what_it_is_for(
    authorization: str | None, query_key: str | None, secret_only: bool, expected: int | Holder
) -> None:
    """The write key opens events, the secret key everything but never from an address; all else is refused."""
    assert status_of(authorization=authorization, query_key=query_key, secret_only=secret_only) == expected


def test_equal_keys_are_a_usage_error() -> None:
    """A browser key that is the secret key would give the shop away."""
    with pytest.raises(UsageError, match="MILLRACE_SECRET_KEY"):
        Keys(b"same", b"same")


@pytest.mark.parametrize(
    ("origin", "allowed", "passes"),
    [
        (None, (), True),
        ("https://shop.example", ("https://shop.example",), True),
        ("https://collect.example", (), True),
        ("https://shop.example", (), False),
        ("https://shop.example.evil", ("https://shop.example",), False),
        ("http://shop.example", ("https://shop.example",), False),
        ("null", ("https://shop.example",), False),
    ],
)
def test_only_pages_of_the_shop_may_call_from_a_browser(
    origin: str | None, allowed: tuple[str, ...], passes: bool
) -> None:
    """An origin is on the list to the letter, or the collector's own; requests without one come from servers."""
    if passes:
        check_origin(origin, host="collect.example", allowed=allowed)
        return
    with pytest.raises(Refused) as refused:
        check_origin(origin, host="collect.example", allowed=allowed)
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("items", "now_s", "expected"), [(None, 0.0, None), (10, 0.0, None), (11, 1000.0, 10), (11, 1009.9, 1)]
)
def test_a_caller_over_the_limit_waits_for_the_next_window(
    items: int | None, now_s: float, expected: int | None
) -> None:
    """The limit itself passes; where nobody counts, everything does; the wait is never zero."""
    assert retry_after_s(items, limit=10, window_s=10, now_s=now_s) == expected


def test_the_secret_key_may_send_more() -> None:
    """A catalogue load is no browser."""
    limits = Limits()
    assert limits.body_bytes(Holder.WRITE) == 65_536 < limits.body_bytes(Holder.SECRET)
    assert limits.items_per_window(Holder.WRITE) < limits.items_per_window(Holder.SECRET)


@pytest.mark.parametrize(
    ("user_agent", "expected"),
    [
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", True),
        ("Mozilla/5.0 (X11; Linux x86_64) HeadlessChrome/120.0.0.0 Safari/537.36", True),
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/142.0.0.0 Safari/537.36", False),
        ("python-httpx/0.28.1", False),
        ("", False),
    ],
)
def test_crawlers_are_on_the_bot_list_and_shoppers_are_not(user_agent: str, expected: bool) -> None:
    """The list names crawlers and driven browsers; libraries of shops' servers and absent agents pass."""
    assert is_bot(user_agent, read_bot_list()) is expected


def test_the_bot_list_is_clean() -> None:
    """Entries are lower case, as they are compared, and stand once."""
    bots = read_bot_list()
    assert len(bots) > 30
    assert len(set(bots)) == len(bots)
    assert all(bot == bot.lower() and not bot.startswith("#") for bot in bots)


class Hops(NamedTuple):
    """What a request says about its way, and whose it is."""

    name: str
    expected: str
    forwarded_for: tuple[str, ...] = ()
    forwarded: tuple[str, ...] = ()
    peer: str = "10.0.0.1"


HOPS = [
    Hops("no header", "10.0.0.1"),
    Hops("one proxy", "203.0.113.9", ("203.0.113.9",)),
    Hops("what the caller wrote itself stands further left", "203.0.113.9", ("6.6.6.6, 203.0.113.9",)),
    Hops("two proxies", "203.0.113.9", ("203.0.113.9, 10.0.0.7",)),
    Hops("a proxy that adds a line of its own", "203.0.113.9", ("6.6.6.6", "203.0.113.9")),
    Hops("a caller inside the trusted network", "10.9.9.9", ("10.9.9.9, 10.0.0.7",)),
    Hops("a peer that is not trusted", "203.0.113.5", ("203.0.113.9",), peer="203.0.113.5"),
    Hops("no address at all", "", ("203.0.113.9",), peer=""),
    Hops("a port", "203.0.113.9", ("203.0.113.9:4711",)),
    Hops("IPv6", "2001:db8::1", ("2001:db8::1",)),
    Hops("IPv6 with a port", "2001:db8::1", ("[2001:db8::1]:4711",)),
    Hops("IPv4 inside IPv6", "203.0.113.9", ("::ffff:203.0.113.9",), peer="::ffff:10.0.0.1"),
    Hops("a trusted IPv6 peer", "203.0.113.9", ("203.0.113.9",), peer="fd00::1"),
    Hops("nonsense", "10.0.0.1", ("unknown",)),
    Hops("nonsense behind a proxy", "10.0.0.7", ("6.6.6.6, unknown, 10.0.0.7",)),
    Hops("an empty header", "10.0.0.1", ("",)),
    Hops("Forwarded", "203.0.113.9", (), ("for=6.6.6.6, For=203.0.113.9;proto=https;by=10.0.0.7",)),
    Hops("Forwarded with IPv6", "2001:db8::1", (), ('for="[2001:db8::1]:4711"',)),
    Hops(
        "Forwarded with a name that looks like a caller", "203.0.113.9", (), ('for=203.0.113.9;host="x,for=6.6.6.6"',)
    ),
    Hops("Forwarded by somebody hidden", "10.0.0.1", (), ("for=_hidden",)),
    Hops("Forwarded without a caller", "10.0.0.1", (), ("proto=https",)),
    Hops("both headers agree", "203.0.113.9", ("203.0.113.9",), ("for=203.0.113.9",)),
    Hops("one of them is forged", "10.0.0.1", ("203.0.113.9",), ("for=6.6.6.6",)),
]


@pytest.mark.parametrize("hops", HOPS, ids=lambda hops: hops.name)
def test_a_callers_address_is_the_nearest_that_no_trusted_proxy_has(hops: Hops) -> None:
    """Nothing that a caller writes into a header makes it somebody else."""
    trusted = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    found = caller_address(hops.peer, forwarded_for=hops.forwarded_for, forwarded=hops.forwarded, trusted=trusted)
    assert found == hops.expected


def test_without_trusted_proxies_headers_say_nothing() -> None:
    """By default the address is that of the connection."""
    assert caller_address("10.0.0.1", forwarded_for=["203.0.113.9"]) == "10.0.0.1"
