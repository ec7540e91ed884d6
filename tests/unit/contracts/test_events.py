"""Shop events: the stand-ins of persons in them."""

import hashlib
import hmac

from contracts.events import person_id


def test_a_stand_in_is_the_hmac_that_the_interfaces_name() -> None:
    """HMAC-SHA256 as hex: the collector, the search service and an erasure tool must find the same person."""
    assert person_id("खरीदार", b"key") == hmac.new(b"key", "खरीदार".encode(), hashlib.sha256).hexdigest()
    assert person_id("c9", b"key") != person_id("c9", b"other key")
