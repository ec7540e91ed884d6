"""Process `search`: `/v1/search` and `/v1/encode` over the release in force."""

import asyncio
import math
from contextlib import AsyncExitStack
from typing import Final

from contracts.arms import ANCHOR, LIVE
from contracts.errors import DependencyDown
from contracts.telemetry import Process
from indexer.points import Owner
from indexer.qdrant import connect, connect_async
from indexer.search.arms import Shares
from indexer.search.arrangement import Boosts
from indexer.search.encoding import QueryEncoder
from indexer.search.exploration import Policy
from indexer.search.finding import DEADLINE_S, Finder
from indexer.search.good_match import GoodMatch
from indexer.search.impressions import ImpressionWriter
from indexer.search.in_force import ServingFollower
from indexer.search.lists import KeptLists
from indexer.search.load import MOST_OPEN
from indexer.search.retrieval import COUNTS_AT_ONCE, QdrantRetrieval
from indexer.search.service import Ranking, SearchService
from indexer.search.web import build
from indexer.store import ProductStore
from service.health import Health
from service.http import bind_socket, serving
from service.kafka import cluster_id, ensure_topics
from service.logging import get_logger
from service.process import Shutdown, run
from service.redis import async_redis_client
from service.settings import Settings
from towers.encoder import load_encoder

WATCH_S: Final = 0.5
FINISH_S: Final = 5.0
METADATA_TIMEOUT_S: Final = 2


async def serve(settings: Settings, shutdown: Shutdown, *, deadline_s: float = DEADLINE_S) -> None:
    """Answer searches until asked to stop.

    Args:
        settings: of the deployment.
        shutdown: ends it.
        deadline_s: how long a search may take.

    Raises:
        MillraceError: it cannot start, or `models` cannot be followed any more.
    """
    settings.require("kafka_bootstrap", "qdrant_url", "person_key")
    health = Health(Process.SEARCH)
    listener = bind_socket(settings.host, settings.listen_port(Process.SEARCH))
    starting = Starting(health, deadline_s)
    async with AsyncExitStack() as stack, serving(build(starting.service, health), listener, finish_s=FINISH_S):
        try:
            followed = await starting.run(settings, shutdown, stack)
        except DependencyDown as error:
            if not shutdown.is_set():
                raise
            get_logger().info("stopped_while_waiting", error=error.message)
            return
        stopping = asyncio.create_task(shutdown.wait_async())
        while not stopping.done() and followed.follower.failure is None:
            await asyncio.wait({stopping}, timeout=WATCH_S)
        stopping.cancel()
        if followed.follower.failure is not None:
            raise followed.follower.failure


class Starting:
    """The service while it starts: says what it waits for.

    Args:
        health: what it says about itself.
        deadline_s: how long a search may take.
    """

    def __init__(self, health: Health, deadline_s: float) -> None:
        self._health = health
        self._deadline_s = deadline_s
        self._reason: str | None = "starting"
        self._service: SearchService | None = None
        health.add_check("start", lambda: self._reason)

    def service(self) -> SearchService:
        """Return the service.

        Raises:
            DependencyDown: it has not started yet.
        """
        if self._service is None:
            raise DependencyDown(f"search is starting: {self._reason}")
        return self._service

    async def run(self, settings: Settings, shutdown: Shutdown, stack: AsyncExitStack) -> ServingFollower:
        """Open everything, each closed by the stack, and return what follows the release in force."""
        (person_key,) = settings.require("person_key")
        self._reason = "waiting for Kafka"
        await asyncio.to_thread(ensure_topics, settings, wait=shutdown.wait)
        cluster = await asyncio.to_thread(cluster_id, settings, wait=shutdown.wait)
        impressions = await asyncio.to_thread(ImpressionWriter, settings)
        impressions.start()
        stack.push_async_callback(asyncio.to_thread, impressions.close)
        self._reason = "loading the base encoder"
        encoder = await asyncio.to_thread(load_encoder, settings.base_model)
        store = ProductStore(connect(settings, timeout_s=METADATA_TIMEOUT_S))
        stack.callback(store.close)
        followed = ServingFollower(settings, encoder, form_of=store.form, owner=Owner(cluster, settings.topic_prefix))
        stack.push_async_callback(asyncio.to_thread, followed.stop)
        followed.start()
        queries = QueryEncoder(encoder)
        stack.callback(queries.close)
        timeout_s = math.ceil(self._deadline_s) + 1
        client = connect_async(settings, timeout_s=timeout_s, connections=MOST_OPEN + COUNTS_AT_ONCE)
        stack.push_async_callback(client.close)
        retrieval = QdrantRetrieval(client)
        good_match = {arm: GoodMatch(queries, retrieval) for arm in (LIVE, ANCHOR)}
        for judge in good_match.values():
            stack.callback(judge.close)
        lists = KeptLists(
            kept_for_s=settings.list_kept_s,
            client=async_redis_client(settings) if settings.redis_url else None,
            prefix=settings.topic_prefix,
        )
        stack.push_async_callback(lists.close)
        await stack.enter_async_context(lists.probed())
        self._service = SearchService(
            lambda: followed.current,
            Finder(
                queries,
                retrieval,
                good_match=good_match,
                hot_for_s=settings.hot_for_s,
                deadline_s=self._deadline_s,
            ),
            lists=lists,
            impressions=impressions,
            person_key=person_key.encode(),
            ranking=Ranking(
                depth=settings.list_depth,
                explore=Policy.named(settings.explore),
                shares=Shares(settings.anchor_share, settings.swap_share, settings.interleave_share),
                boosts=Boosts(settings.launch_boost_nats, settings.launch_days, settings.priority_boost_nats),
                hides_no_good_match=settings.hide_no_good_match,
            ),
        )
        await stack.enter_async_context(self._service.probed())
        self._health.add_check("serving", followed.not_ready)
        self._health.add_check("impressions", impressions.not_ready)
        self._reason = None
        return followed


def main() -> None:
    """Run the process."""
    run(Process.SEARCH, serve)


if __name__ == "__main__":
    main()
