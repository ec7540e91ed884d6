"""What attribution keeps in a real Redis: found once, said again the same way, bounded, and gone after a day."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import redis.asyncio
import structlog

from contracts.joined import Origin
from contracts.outcomes import Grade
from service.redis import async_redis_client
from service.settings import Settings
from streams.attribution.conversions import Conversion, Found
from streams.attribution.memory import BATCH, MOST_CLICKS, PAUSE_S, AttributionMemory
from streams.attribution.remembered import HORIZON_MS, ChosenProduct, SessionClick, SessionClicks, kept_pair
from tests.support.pairs import preference_pair
from tests.support.ports import free_port
from tests.support.search_events import T0

pytestmark = [pytest.mark.redis]

DELAY_MS = 10_000


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """Give a client of the session's Redis."""
    async with async_redis_client(Settings(redis_url=redis_url)) as one:
        yield one


@pytest.fixture
def memory(client: redis.asyncio.Redis, topic_prefix: str) -> AttributionMemory:
    """Give a memory of this test's own."""
    return AttributionMemory(client, prefix=topic_prefix, delay_ms=DELAY_MS)


def chosen(search_id: str = "s1", product_id: str = "a", grade: int = 1) -> ChosenProduct:
    """Return a product that was chosen in a list."""
    pair = preference_pair(search_id, chosen=product_id, rejected="b", query=f"query of {search_id}")
    return ChosenProduct(search_id, product_id, grade, T0 + HORIZON_MS, kept_pair(pair))


def conversion(offset: int = 7, *, search_id: str | None = "s1", grade: Grade = Grade.PURCHASE) -> Conversion:
    """Return a purchase of an order of its own, or a cart event."""
    origin = Origin(topic="search-events", partition=0, offset=offset)
    return Conversion(origin, (grade.name, f"O-{offset}"), grade, "a", T0 + 1_000, "k1", search_id)


async def found(memory: AttributionMemory, *conversions: Conversion) -> list[Found]:
    """Look conversions up."""
    answers = await memory.claim(conversions)
    assert answers is not None
    return answers


async def test_a_conversion_finds_the_product_of_its_search_and_raises_its_grade(memory: AttributionMemory) -> None:
    """The next one sees the grade that was reached; a cart after the purchase lowers nothing."""
    assert await memory.remember([chosen()])
    cart, bought, again = conversion(1, grade=Grade.CART), conversion(2), conversion(3, grade=Grade.CART)
    answers = await found(memory, cart, bought, again)
    assert [one.chosen.grade for one in answers if one.chosen] == [1, 3, 4]
    assert answers[0].chosen == chosen()._replace(until_ms=0)
    assert [one.inferred for one in answers] == [False] * 3


async def test_a_record_that_is_asked_again_is_answered_the_same(memory: AttributionMemory) -> None:
    """A killed agent repeats itself; the same order in another record is a duplicate."""
    await memory.remember([chosen()])
    first = await found(memory, conversion())
    await memory.remember([chosen(grade=2)])  # the pair is said once more, by a killed agent too
    await found(memory, conversion(8))
    assert await found(memory, conversion()) == first
    other_record = conversion()._replace(origin=Origin(topic="search-events", partition=0, offset=99))
    assert await found(memory, other_record) == [Found("duplicate")]


async def test_without_a_known_search_the_sessions_last_click_counts(memory: AttributionMemory) -> None:
    """It is marked as inferred; a search that is known goes before it."""
    clicks = tuple(SessionClick(T0 + number, "a", f"s{number}") for number in (1, 2))
    await memory.remember([chosen("s1"), chosen("s2"), SessionClicks("k1", clicks)])
    unknown, none, known = conversion(1, search_id="s9"), conversion(2, search_id=None), conversion(3, search_id="s1")
    answers = await found(memory, unknown, none, known)
    told = [(one.chosen.search_id, one.chosen.pair.query, one.inferred) for one in answers if one.chosen]
    assert told == [("s2", "query of s2", True), ("s2", "query of s2", True), ("s1", "query of s1", False)]


async def test_clicks_that_were_kept_without_their_query_are_read(
    memory: AttributionMemory, client: redis.asyncio.Redis, topic_prefix: str
) -> None:
    """The last one counts; the one before it may be of another query."""
    members: dict[Any, int] = {f'[{T0 + n},"a","s{n}"]': T0 + n for n in (1, 2)}
    await client.zadd(f"{topic_prefix}millrace:session-clicks:k1", members)
    await memory.remember([chosen("s1")])
    assert await found(memory, conversion(1, search_id=None)) == [Found("nothing")]
    await memory.remember([chosen("s2")])
    (answer,) = await found(memory, conversion(2, search_id=None))
    assert answer.chosen is not None
    assert answer.chosen.search_id == "s2"


async def test_what_is_not_remembered_or_too_old_is_not_found(memory: AttributionMemory) -> None:
    """After a day nothing belongs to a click, though Redis still had it."""
    await memory.remember([chosen()])
    late = conversion(1)._replace(event_time=T0 + HORIZON_MS + 1)
    assert await found(memory, late, conversion(2, search_id="s9")) == [Found("expired"), Found("nothing")]


async def test_a_session_without_end_takes_no_more_room_than_its_newest_clicks(
    memory: AttributionMemory, client: redis.asyncio.Redis, topic_prefix: str
) -> None:
    """A robot's clicks push out one another; more than one transaction's worth is kept as well."""
    many = [SessionClicks("k1", (SessionClick(T0 + number, f"p{number}", "s1"),)) for number in range(2 * BATCH + 7)]
    assert await memory.remember(many)
    kept = await client.zrange(f"{topic_prefix}millrace:session-clicks:k1", 0, -1)
    assert len(kept) == MOST_CLICKS
    assert kept[-1] == f'[{T0 + 2 * BATCH + 6},"p{2 * BATCH + 6}","s1",""]'.encode()


async def test_everything_goes_by_itself(
    memory: AttributionMemory, client: redis.asyncio.Redis, topic_prefix: str
) -> None:
    """No key but the clock's is without an end: a Redis with a memory limit may push them out, too."""
    await memory.remember([chosen(), SessionClicks("k1", (SessionClick(T0, "a", "s1"),))])
    await found(memory, conversion())
    await memory.tell_clock("preference-pairs/0", T0)
    left_s = {key: await client.ttl(key) async for key in client.scan_iter(f"{topic_prefix}*")}
    clock = left_s.pop(f"{topic_prefix}millrace:attribution:clock".encode())
    assert clock == -1
    assert len(left_s) == 3
    assert all(0 < seconds <= (HORIZON_MS + DELAY_MS) // 1000 for seconds in left_s.values())


async def test_the_clock_is_that_of_the_slowest_partition(memory: AttributionMemory) -> None:
    """While one of them has said nothing, it is not known."""
    places: Sequence[str] = ["preference-pairs/0", "joined-searches/0"]
    assert await memory.clock_ms(places) is None
    await memory.tell_clock(places[0], T0 + 5)
    assert await memory.clock_ms(places) is None
    await memory.tell_clock(places[1], T0)
    assert await memory.clock_ms(places) == T0


async def test_an_outage_is_one_line_and_redis_is_asked_once_a_second() -> None:
    """Nothing is kept, found or known meanwhile, and whoever asks is told so."""
    now_s = [100.0]
    client = async_redis_client(Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    memory = AttributionMemory(client, prefix="", delay_ms=0, monotonic_s=lambda: now_s[0])
    with structlog.testing.capture_logs() as lines:
        assert not await memory.remember([chosen()])
        assert await memory.claim([conversion()]) is None
        assert await memory.clock_ms(["preference-pairs/0"]) is None
        now_s[0] += PAUSE_S
        assert not await memory.remember([chosen()])
    assert [line["event"] for line in lines] == ["dependency_down"]
    assert not memory.is_up
    await memory.close()
