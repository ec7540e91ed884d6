"""The stand-ins of persons, and the shares made of them."""

import hashlib
import hmac

from service.people import person_id, share


def test_a_stand_in_is_the_hmac_that_the_interfaces_name() -> None:
    """HMAC-SHA256 as hex: the collector, the search service and an erasure tool must find the same person."""
    assert person_id("खरीदार", b"key") == hmac.new(b"key", "खरीदार".encode(), hashlib.sha256).hexdigest()
    assert person_id("c9", b"key") != person_id("c9", b"other key")


def test_a_share_is_even_and_below_one() -> None:
    """A tenth of the shares lies below 0.1, and even the last one below 1."""
    shares = [share(person_id(str(number), b"key")) for number in range(10_000)]
    assert all(0 <= value < 1 for value in shares)
    assert 850 < sum(value < 0.1 for value in shares) < 1_150
    assert share("f" * 64) < 1
    assert share("0" * 64) == 0


def test_shares_for_different_purposes_are_independent() -> None:
    """Who is held out is no question of who is on the anchor arm."""
    people = [person_id(str(number), b"key") for number in range(10_000)]
    both = [one for one in people if share(one) < 0.1 and share(one, purpose="holdout") < 0.1]
    assert 50 < len(both) < 160
    assert share(people[0], purpose="holdout") == share(people[0], purpose="holdout")
