"""Redis in memory: what attribution asks of it, its script said again in Python."""

from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisDown

from streams.attribution.memory import CLAIM
from tests.simulation.kafka import Faults

Answer = Any


def _bytes(value: object) -> bytes:
    """Return a value as Redis keeps it."""
    return value if isinstance(value, bytes) else str(value).encode()


class RedisServer:
    """A server that may be away or emptied; every transaction is done at once or not at all.

    Args:
        faults: of its requests.
    """

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.is_up = True
        self.hashes: dict[str, dict[str, bytes]] = {}
        self.sorted_sets: dict[str, dict[bytes, float]] = {}

    def empty(self) -> None:
        """Forget everything."""
        self.hashes.clear()
        self.sorted_sets.clear()

    def pipeline(self, *, transaction: bool) -> "Pipeline":
        """Begin a transaction."""
        assert transaction
        return Pipeline(self)

    async def aclose(self) -> None:
        """Close a connection."""

    def hset(self, key: str, field: str, value: object) -> Answer:
        """Set a field."""
        self.hashes.setdefault(key, {})[field] = _bytes(value)

    def hsetnx(self, key: str, field: str, value: object) -> Answer:
        """Set a field that is not set."""
        self.hashes.setdefault(key, {}).setdefault(field, _bytes(value))

    def hmget(self, key: str, fields: Sequence[str]) -> Answer:
        """Return fields."""
        known = self.hashes.get(key, {})
        return [known.get(field) for field in fields]

    def expire(self, key: str, seconds: int) -> Answer:
        """Let a key go after a day, which no run is longer than."""

    def zadd(self, key: str, members: Mapping[bytes, float]) -> Answer:
        """Add members."""
        self.sorted_sets.setdefault(key, {}).update(members)

    def zremrangebyrank(self, key: str, first: int, last: int) -> Answer:
        """Remove the members with the lowest scores."""
        assert first == 0
        ranked = self.zrange(key, 0, -1)
        for member in ranked[: len(ranked) + last + 1]:
            del self.sorted_sets[key][member]

    def zrange(self, key: str, first: int, last: int) -> Answer:
        """Return all members, by score."""
        assert (first, last) == (0, -1)
        scores = self.sorted_sets.get(key, {})
        return sorted(scores, key=lambda member: (scores[member], member))

    def eval(self, script: str, count: int, *arguments: Any) -> Answer:
        """Do what the script of attribution does."""
        assert script is CLAIM
        (event, *products), rest = arguments[:count], [_bytes(one) for one in arguments[count:]]
        origin, grade, at_ms, _kept_s, *searches = rest
        if known := self.hashes.get(event):
            if known["origin"] != origin:
                return [b"duplicate"]
            pair = self.hashes.get(known["chosen"].decode(), {}).get("pair")
            return [b"found", pair, known["grade"], known["search"], known["inferred"]] if pair else [b"nothing"]
        state = b"nothing"
        for number, key in enumerate(products):
            chosen = self.hashes.get(key)
            if chosen is None:
                continue
            if int(chosen["until"]) < int(at_ms):
                state = b"expired"
                continue
            search, inferred, before = searches[2 * number], searches[2 * number + 1], chosen["grade"]
            self.hashes[event] = {
                "origin": origin, "chosen": key.encode(), "grade": before, "search": search, "inferred": inferred,
            }  # fmt: skip
            chosen["grade"] = max(before, grade, key=int)
            return [b"found", chosen["pair"], before, search, inferred]
        return [state]


class Pipeline:
    """Commands of a transaction.

    Args:
        server: that does them.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._commands: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self._commands.append((name, arguments))

    async def __aenter__(self) -> "Pipeline":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def execute(self) -> list[Answer]:
        """Do it all; the answer may be lost."""
        server, faults = self._server, self._server.faults
        await faults.pass_time()
        if not server.is_up:
            raise RedisDown("away")
        answers = [getattr(server, name)(*arguments) for name, arguments in self._commands]
        if faults.happens(faults.lost_reply):
            raise RedisDown("the reply was lost")
        await faults.pass_time()
        return answers
