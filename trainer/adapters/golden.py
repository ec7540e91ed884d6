"""The golden queries as `golden-queries` has them."""

from collections.abc import Mapping

from contracts import wire
from contracts.errors import ContractError
from contracts.golden import GOLDEN_QUERY, MAX_GOLDEN_QUERIES, GoldenQuery
from service.logging import get_logger
from towers.text import normalised


class GoldenTable:
    """The newest record of every golden query: fed by a follower's thread, read by any.

    Under keys of before, which told accents apart by how they are encoded, a query may be there once more: then the
    record whose key is the normalised query holds.

    Args:
        most: queries that are kept: those whose keys come first, so that all trainers keep the same.
    """

    def __init__(self, *, most: int = MAX_GOLDEN_QUERIES) -> None:
        self._most = most
        self._queries: Mapping[str, GoldenQuery] = {}
        self._told = False

    def forget(self) -> None:
        """Forget everything: the topic was deleted and made anew."""
        self._queries, self._told = {}, False

    def look(self) -> Mapping[str, GoldenQuery]:
        """The golden queries by key; a mapping never changes, another one takes its place."""
        return self._queries

    def on_record(self, key: bytes, value: bytes | None, _timestamp_ms: int) -> None:
        """Take one record of the topic; one that breaks its contract is told and changes nothing."""
        try:
            name = key.decode()
            query = None if value is None else wire.decode(value, GOLDEN_QUERY)
        except (ContractError, UnicodeDecodeError) as error:
            get_logger().warning("golden_query_unreadable", error=str(error), fix="`millrace golden ls` names it")
            return
        queries = {known: kept for known, kept in self._queries.items() if known != name}
        own = normalised(name)
        if query is not None and (name == own or own not in queries):
            queries = {known: kept for known, kept in queries.items() if normalised(known) != own}
            queries[name] = query
        if len(queries) > self._most:
            del queries[max(queries)]
            self._tell_too_many()
        self._queries = queries

    def _tell_too_many(self) -> None:
        """Say once that some are left out; one that was comes back at the next start, if there is room by then."""
        if not self._told:
            self._told = True
            get_logger().warning("golden_queries_left_out", most=self._most, fix="remove some: `millrace golden ls`")
