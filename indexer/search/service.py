"""One search from request to answer: find, rank, arrange, keep the list for its further pages, show one of them.

If nothing can be found, because the vector store does not answer, an earlier answer to the same search is given again.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from contracts.arms import INTERLEAVED
from contracts.base import is_visible
from contracts.errors import DependencyDown, Expired, MalformedMessage, MillraceError, Overloaded
from contracts.events import BY_RELEVANCE, person_id
from contracts.http import MOST_PAGES, EncodeAnswer, SearchAnswer, SearchRequest, SearchResult
from contracts.telemetry import Process
from indexer.search.arms import NO_SHARES, Assignment, Draw, Shares, anchor_of, arm_of, interleaved, perturbed
from indexer.search.arrangement import NO_BOOSTS, Boosts, arranged
from indexer.search.encoding import digest
from indexer.search.exploration import NO_EXPLORATION, Policy, swapped
from indexer.search.facets import MATCHING
from indexer.search.finding import Finder, explained
from indexer.search.impressions import ImpressionLog, impression_of, time_ordered_id
from indexer.search.in_force import ServedRelease
from indexer.search.lists import (
    MOST_LISTED,
    Found,
    KeptLists,
    RankedList,
    asked_by,
    continued,
    kept_of,
    listed_ids,
    page_of,
    wanted,
)
from indexer.search.remembered import RememberedAnswers
from indexer.search.retrieval import Hit, result_of
from service import metrics
from service.health import PROBE_S, Dependency, probed
from service.machine import EpochClock, epoch_ms

OVERFETCH: Final = 3
"""Products that are asked for, for each that is to be shown, if variants are grouped or sellers are capped."""
SEED_BITS: Final = 32


@dataclass(frozen=True, slots=True)
class Clocks:
    """The time, for those who measure and those who forget."""

    epoch_ms: EpochClock = field(default=epoch_ms)
    monotonic_s: Callable[[], float] = field(default=time.monotonic)


@dataclass(frozen=True, slots=True)
class Ranking:
    """How this service ranks, whoever asks.

    Args:
        depth: products that meaning, and words, give a list at least.
        explore: how live lists are perturbed for those who allow it.
        shares: of searches that are for learning.
        boosts: what the shop adds to scores.
        hides_no_good_match: whether nothing is shown if nothing matches well.
    """

    depth: int = 50
    explore: Policy = NO_EXPLORATION
    shares: Shares = NO_SHARES
    boosts: Boosts = NO_BOOSTS
    hides_no_good_match: bool = False


class _Page(NamedTuple):
    search_id: str
    ranked: RankedList
    results: tuple[SearchResult, ...]
    age_s: float | None = None


class SearchService:
    """Answers searches.

    Args:
        in_force: gives the release in force, None before the first.
        finder: asks the vector store.
        lists: keeps what was ranked, for further pages.
        impressions: where impressions go.
        person_key: replaces client ids.
        ranking: how it ranks.
        clocks: the time.
    """

    def __init__(
        self,
        in_force: Callable[[], ServedRelease | None],
        finder: Finder,
        *,
        lists: KeptLists,
        impressions: ImpressionLog,
        person_key: bytes,
        ranking: Ranking,
        clocks: Clocks | None = None,
    ) -> None:
        self._release_in_force = in_force
        self._finder = finder
        self._lists = lists
        self._impressions = impressions
        self._person_key = person_key
        self._ranking = ranking
        self._clocks = clocks or Clocks()
        self._remembered = RememberedAnswers(self._clocks.monotonic_s)
        self._qdrant = Dependency(Process.QDRANT, meaning="searches are answered from memory, or not at all")

    def probed(self, *, every_s: float = PROBE_S) -> AbstractAsyncContextManager[None]:
        """Know of the vector store during the block although nobody searches."""
        return probed(self._qdrant, self._ask_store, every_s=every_s)

    async def _ask_store(self) -> bool:
        if (release := self._release_in_force()) is not None:
            await self._finder.ask(release.collection)
        return release is not None

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Answer a search, or give another page of an earlier one, and hand the impression over.

        Raises:
            DependencyDown: no release is in force yet, or the vector store does not answer and nothing is remembered.
            Overloaded: more is asked than can be answered within the deadline.
            Expired: the list of which a page is asked for is not kept any more.
            MalformedMessage: the search of which a page is asked for asked for something else.
        """
        began, now_ms = time.perf_counter(), self._clocks.epoch_ms()
        query = " ".join(request.query.split()) if is_visible(request.query) else ""
        release = self._answering(query, request)
        if request.facets:
            counted = self._finder.facets(query, release, request.facets, request.filters)
            page, facets = await asyncio.gather(self._page(query, request, release, now_ms), counted)
        else:
            page, facets = await self._page(query, request, release, now_ms), None
        search_id, ranked, results, age_s = page
        if facets is not None and self._is_hidden(ranked.no_good_match):
            facets = dict.fromkeys(facets, ())
        answer = SearchAnswer(
            search_id=search_id,
            search_time=ranked.search_time,
            query_release=ranked.query_release,
            product_release=ranked.product_release,
            arm=ranked.arm,
            exploration=ranked.exploration,
            degraded=ranked.degraded,
            age_s=age_s,
            took_ms=round(1000 * (time.perf_counter() - began), 3),
            no_good_match=ranked.no_good_match,
            total=max(ranked.total or 0, sum(map(len, ranked.pages))),
            total_relation="gte" if ranked.total is None else "eq",
            page=request.page,
            has_more=request.page < min(len(ranked.pages), MOST_PAGES),
            results=results,
            sort=request.sort,
            facets=facets,
        )
        is_seen = results or request.page == 1
        if request.impression == "server" and is_seen:
            self._impressions.send(impression_of(request, answer, query=query, person_key=self._person_key))
        metrics.SEARCH_SECONDS.labels("total").observe(time.perf_counter() - began)
        return answer

    async def encode(self, texts: tuple[str, ...]) -> EncodeAnswer:
        """Return query vectors of the release in force; somebody waits for one text as for a search, not so for many.

        Raises:
            DependencyDown: no release is in force yet.
            Overloaded: they cannot be encoded in time.
        """
        release = self._in_force()
        vectors = await self._finder.vectors(release, texts)
        return EncodeAnswer(
            query_release=release.query_release,
            product_release=release.product_release,
            collection=release.collection,
            vectors=tuple(tuple(row) for row in vectors.tolist()),
            remembered=tuple(map(release.tower.remembered, texts)),
        )

    def _is_hidden(self, no_good_match: bool) -> bool:
        return no_good_match and self._ranking.hides_no_good_match

    def _in_force(self) -> ServedRelease:
        release = self._release_in_force()
        if release is None:
            raise DependencyDown("nothing is served yet", fix="start the indexer: it puts the first release in force")
        return release

    def _answering(self, query: str, request: SearchRequest) -> ServedRelease:
        """The release that answers whoever asks; a list that no query ranks is nobody's experiment."""
        release = self._in_force()
        if not query or request.sort != BY_RELEVANCE:
            return release
        person = request.session_id if request.client_id is None else person_id(request.client_id, self._person_key)
        return arm_of(release, person, self._ranking.shares.anchor)

    def _assignment(self, query: str, request: SearchRequest, release: ServedRelease) -> Assignment:
        """How the list is perturbed, if it may be; diversity ranks by score again, and would undo it."""
        is_plain = query and request.sort == BY_RELEVANCE and not request.diversity
        if not is_plain or not request.explore or request.impression == "none":  # nobody learns from what is not logged
            return Assignment(release)
        drawn = Draw(secrets.randbits(SEED_BITS) / 2**SEED_BITS, secrets.randbits(SEED_BITS))
        shares = self._ranking.shares
        if request.group_variants or request.per_seller is not None:  # two lists so arranged make none that is
            shares = shares._replace(interleave=0.0)
        return perturbed(release, self._ranking.explore, shares, drawn)

    async def _page(self, query: str, request: SearchRequest, release: ServedRelease, now_ms: int) -> _Page:
        """Rank a list and keep it, or read one that is kept; then show a page of it."""
        asked = asked_by(request, query)
        if request.search_id is not None:
            ranked = await self._kept(request.search_id, asked)
            ranked = await self._as_long(request.search_id, ranked, request, now_ms)
            return _Page(request.search_id, ranked, await self._read_again(request, ranked))
        assignment = self._assignment(query, request, release)
        find = self._find if assignment.rival is None else self._interleaved
        found = await find(query, request, assignment, asked=asked, now_ms=now_ms)
        if found.no_good_match and found.degraded is None:
            metrics.NO_GOOD_MATCH.inc()
        search_id, ranked = time_ordered_id(now_ms), kept_of(found, asked=asked, search_time=now_ms)
        self._lists.keep(search_id, ranked)
        if ranked.goes_on and request.page >= len(ranked.pages):
            ranked = await self._as_long(search_id, ranked, request, now_ms)
            return _Page(search_id, ranked, await self._read_again(request, ranked), found.age_s)
        shown = enumerate(page_of(found.pages, request.page), ranked.first_position(request.page))
        results = tuple(
            result_of(position, hit, found.explanations.get(hit.payload["product_id"])) for position, hit in shown
        )
        return _Page(search_id, ranked, results, found.age_s)

    async def _interleaved(
        self, query: str, request: SearchRequest, assignment: Assignment, *, asked: bytes, now_ms: int
    ) -> Found:
        """Return the lists of both arms in one; the live one if the other cannot be had, or is not as good as usual."""
        live, anchor = await asyncio.gather(
            *(
                self._find(query, request, Assignment(release), asked=asked, now_ms=now_ms)
                for release in (assignment.release, anchor_of(assignment.release))
            ),
            return_exceptions=True,
        )
        if isinstance(live, BaseException):
            raise live
        if isinstance(anchor, BaseException) and not isinstance(anchor, MillraceError):
            raise anchor
        if isinstance(anchor, MillraceError) or live.degraded or anchor.degraded or not (live.pages and anchor.pages):
            return live._replace(arm=INTERLEAVED)  # what was drawn is none of the live arm's, whatever came of it
        return interleaved(live, anchor, k=request.k, seed=assignment.seed)

    async def _find(
        self, query: str, request: SearchRequest, assignment: Assignment, *, asked: bytes, now_ms: int
    ) -> Found:
        """Return what the vector store finds, or what it found when the same was asked before."""
        ranking, release = self._ranking, assignment.release
        by_relevance = request.sort == BY_RELEVANCE
        least = assignment.policy.most_moved if query and by_relevance else MATCHING
        most = max(ranking.depth, request.k * (OVERFETCH if request.group_variants or request.per_seller else 1), least)
        key = digest(f"{asked.hex()} {request.page} {release.arm} {request.explore}")
        began_s, answers = self._clocks.monotonic_s(), self._qdrant.answers
        try:
            candidates = await self._finder.find(
                query,
                release,
                most=most if query else most + 1,  # one more tells whether a list goes on
                filters=request.filters,
                sort=request.sort,
                with_vectors=request.explain or request.diversity > 0,
                groups=request.k if query and by_relevance and request.group_variants else 0,
            )
        except MillraceError as error:
            return self._instead(key, error, answers)
        age_s = began_s - candidates.found_at_s
        if age_s <= 0:
            self._qdrant.answered()
        is_hidden = self._is_hidden(candidates.no_good_match)
        goes_on = not query and len(candidates.hits) > most
        boosts = ranking.boosts if by_relevance else NO_BOOSTS
        hits = boosts.ranked([] if is_hidden else candidates.hits[: most if goes_on else None], now_ms)
        if candidates.row is None:  # nothing is perturbed whose scores are not the model's
            assignment = Assignment(release)
        policy, seed = assignment.policy, assignment.seed
        pages = arranged(policy.ranked(hits, seed=seed), request)
        shown = page_of(pages, request.page)
        explanations = {}
        if request.explain:
            explanations = explained(shown, query, release, candidates.row, lambda hit: boosts.of(hit.payload, now_ms))
        found = Found(
            release.query_release,
            release.product_release,
            pages,
            0 if is_hidden else candidates.total,
            release.arm,
            Assignment(release).exploration if policy.swaps else assignment.exploration,
            explanations,
            degraded="lexical" if candidates.by_words else None,
            age_s=round(age_s, 1) if age_s > 0 else None,
            no_good_match=candidates.no_good_match,
            goes_on=goes_on,
        )
        if candidates.by_words:  # nothing of it is remembered, for whole answers are better
            metrics.DEGRADED.labels("lexical").inc()
            return found
        if request.page == 1:
            self._remembered.keep(key, found, shown, candidates.found_at_s)
        if policy.swaps and not any(hit.pin for hit in hits):  # what the query names keeps its place
            return found._replace(pages=swapped(pages, seed), exploration=assignment.exploration)
        return found

    async def _kept(self, search_id: str, asked: bytes) -> RankedList:
        ranked = await self._lists.find(search_id)
        if ranked is None:
            raise Expired(
                f"search {search_id} is not known any more: its list was kept for {self._lists.kept_for_s:g} s at most",
                fix="ask for the page without search_id: it is ranked anew",
            )
        if ranked.asked != asked:
            raise MalformedMessage(
                "other_search", f"{search_id} asked for something else: repeat its request", field="search_id"
            )
        return ranked

    async def _as_long(self, search_id: str, ranked: RankedList, request: SearchRequest, now_ms: int) -> RankedList:
        """Make a list that goes on so long that something is behind a page, as far as there is, and keep it."""
        kept, release = ranked, self._in_force()
        while ranked.goes_on and request.page >= len(ranked.pages):
            listed = listed_ids(ranked)
            most = wanted(ranked, request, len(listed))
            try:
                further = await self._finder.further(
                    release, sort=request.sort, most=most + 1, filters=request.filters, without=listed
                )
            except MillraceError as error:
                raise self._refusal(error) from error
            goes_on = most < len(further) and len(listed) + most < MOST_LISTED
            further = further[:most]
            if request.sort == BY_RELEVANCE:
                further = self._ranking.boosts.ranked(further, now_ms)
            ranked = continued(ranked, further, request, goes_on=goes_on)
        if ranked is not kept:
            self._lists.keep(search_id, ranked)
        return ranked

    async def _read_again(self, request: SearchRequest, ranked: RankedList) -> tuple[SearchResult, ...]:
        """Read what a page of a kept list says today; what is gone, or meets the filters no more, leaves a gap."""
        entries = page_of(ranked.pages, request.page)
        if not entries:
            return ()
        ids = [entry.product_id for entry in entries]
        try:
            shown = await self._finder.shown(self._in_force().collection, ids, request.filters)
        except MillraceError as error:
            raise self._refusal(error) from error
        self._qdrant.answered()
        return tuple(
            result_of(position, Hit(entry.score, shown[entry.product_id], variants=entry.variants, team=entry.team))
            for position, entry in enumerate(entries, ranked.first_position(request.page))
            if entry.product_id in shown
        )

    def _instead(self, key: bytes, error: MillraceError, answers: int) -> Found:
        """Return the last results of the same search, whose releases the answer then names."""
        remembered = self._remembered.find(key)
        if remembered is None:
            raise self._refusal(error, answers) from error
        self._note(error, answers)
        metrics.DEGRADED.labels("remembered").inc()
        return remembered

    def _refusal(self, error: MillraceError, answers: int | None = None) -> MillraceError:
        """What the shopper is told; an outage is noted."""
        self._note(error, answers)
        is_overload = isinstance(error, Overloaded)
        metrics.DEGRADED.labels("shed" if is_overload else "unanswered").inc()
        if is_overload:
            return error
        return DependencyDown(
            "the vector store does not answer, and no earlier answer is remembered",
            fix="bring the vector store back; `millrace doctor` shows what is missing",
        )

    def _note(self, error: MillraceError, answers: int | None) -> None:
        if not isinstance(error, Overloaded):
            self._qdrant.failed(error, answers=answers)
