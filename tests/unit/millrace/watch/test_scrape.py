"""Other processes are asked over HTTP; one that is silent, slow or strange hides no other."""

import threading
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from contracts.errors import UsageError
from contracts.telemetry import FRESHNESS_BUCKETS_S, M_FRESHNESS
from millrace.watch.scrape import ProcessView, Scraper, freshness_report, look_at_processes, scrape_targets
from service.settings import Settings

READY = {"process": "search", "ready": True, "reasons": []}
WAITING = {"process": "search", "ready": False, "reasons": ["releases: none yet"]}


def ask(answers: dict[str, httpx.Response | Exception], host: str = "search") -> ProcessView:
    """Return the view of a process that answers so by path."""

    def handle(request: httpx.Request) -> httpx.Response:
        """Answer or fail."""
        answer = answers[request.url.path]
        if isinstance(answer, Exception):
            raise answer
        return answer

    with Scraper({"search": f"http://{host}:8081"}, transport=httpx.MockTransport(handle)) as scraper:
        return scraper.look()["search"]


def exposed(observations: dict[str, list[float]]) -> str:
    """Return the metrics text of a process that observed these."""
    registry = CollectorRegistry()
    histogram = Histogram(M_FRESHNESS, "test", ("path",), buckets=FRESHNESS_BUCKETS_S, registry=registry)
    for path, values in observations.items():
        for value in values:
            histogram.labels(path=path).observe(value)
    return generate_latest(registry).decode()


def measured(metrics: str) -> ProcessView:
    """Return the view of a ready process with these metrics."""
    return ask({"/ready": httpx.Response(200, json=READY), "/metrics": httpx.Response(200, text=metrics)})


def test_a_ready_process() -> None:
    """It is ready, gives no reasons, and its metrics are there."""
    view = measured(exposed({"click_to_search": [12.0]}))
    assert (view.ready, view.reasons, view.problem) == (True, (), "")
    assert view.freshness["click_to_search"].count == 1


def test_a_waiting_process_gives_its_reasons() -> None:
    """It answers, so it is not silent, and its metrics still count."""
    metrics = httpx.Response(200, text=exposed({"click_to_search": [12.0]}))
    view = ask({"/ready": httpx.Response(503, json=WAITING), "/metrics": metrics})
    assert (view.ready, view.reasons, set(view.freshness)) == (False, ("releases: none yet",), {"click_to_search"})


def test_a_silent_process() -> None:
    """Neither ready nor waiting: it did not answer."""
    view = ask({"/ready": httpx.ConnectError("refused")})
    problem = "does not answer: ConnectError"
    assert view == ProcessView(ready=None, reasons=(problem,), problem=problem)


def test_a_process_that_stops_between_the_questions_is_silent() -> None:
    """Half an answer is none."""
    assert ask({"/ready": httpx.Response(200, json=READY), "/metrics": httpx.ReadTimeout("slow")}).ready is None


@pytest.mark.parametrize("body", [b"ok", b"[]", b'{"reasons":"none"}', b"{", b"\xff"])
def test_a_strange_answer_has_no_reasons(body: bytes) -> None:
    """Whatever else listens there does not break the look."""
    view = ask({"/ready": httpx.Response(503, content=body), "/metrics": httpx.Response(404)})
    assert view == ProcessView(ready=False)


def test_processes_are_asked_side_by_side() -> None:
    """Two processes that answer only once both were asked do answer."""
    both = threading.Barrier(2, timeout=10)

    def handle(request: httpx.Request) -> httpx.Response:
        """Wait for the other."""
        if request.url.path == "/ready":
            both.wait()
            return httpx.Response(200, json=READY)
        return httpx.Response(200, text="")

    targets = {"search": "http://search", "indexer": "http://indexer"}
    with Scraper(targets, timeout_s=10.0, transport=httpx.MockTransport(handle)) as scraper:
        assert [view.ready for view in scraper.look().values()] == [True, True]


def test_a_closed_port_is_silent() -> None:
    """Over real connections, nothing listens on port 1."""
    assert look_at_processes({"search": "http://127.0.0.1:1"})["search"].ready is None


def test_where_nothing_is_named_nothing_is_asked() -> None:
    """No target is no error."""
    assert look_at_processes({}) == {}


def test_targets_of_the_setting() -> None:
    """Blanks and a trailing slash do not matter."""
    settings = Settings(scrape=" search = http://127.0.0.1:8081/ ,indexer=https://indexer:9103,")
    assert scrape_targets(settings) == {"search": "http://127.0.0.1:8081", "indexer": "https://indexer:9103"}


@pytest.mark.parametrize("entry", ["search", "search=127.0.0.1:8081", "=http://a", "search=http://", "a=http://:b"])
def test_what_is_no_target_is_refused(entry: str) -> None:
    """A target that could never be asked is refused with the form."""
    with pytest.raises(UsageError) as raised:
        scrape_targets(Settings(scrape=entry))
    assert "search=http://" in raised.value.fix


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"a{ 1", b"\xff\xfe", b'millrace_freshness_seconds_bucket{le="x"} 1']
)
def test_metrics_that_are_none_are_said(body: bytes) -> None:
    """Another server on that port breaks neither the look nor the report; what is missing has its reason."""
    view = ask({"/ready": httpx.Response(200, json=READY), "/metrics": httpx.Response(200, content=body)})
    assert freshness_report([view])["click_to_search"]["count"] == 0
    assert (view.ready, bool(view.problem)) == (True, b"millrace" not in body)


def test_an_answer_without_an_end_is_none() -> None:
    """A server that trickles bytes for ever, each in time, is given up all the same."""

    def endless() -> Iterator[bytes]:
        """Send and send."""
        while True:
            yield b"x" * 65_536

    assert ask({"/ready": httpx.Response(200, content=endless())}).ready is None


def test_each_way_is_read_from_the_process_that_measures_it() -> None:
    """Search measures clicks, the indexer measures products; the report has both."""
    texts = [exposed({"click_to_search": [12.0] * 100}), exposed({"product_to_search": [0.4] * 50}), ""]
    report = freshness_report(map(measured, texts))
    assert report["click_to_search"]["count"] == 100
    assert report["click_to_search"]["p50"] == pytest.approx(11.2)
    assert report["product_to_search"]["p99"] == pytest.approx(0.42032)


def test_several_processes_of_one_kind_are_measured_together() -> None:
    """Two search services each saw some of the clicks; the quantiles are over all of them."""
    texts = [exposed({"click_to_search": [0.1] * 10}), exposed({"click_to_search": [50.0] * 90})]
    report = freshness_report(map(measured, texts))
    assert report["click_to_search"]["count"] == 100
    assert report["click_to_search"]["p50"] is not None
    assert report["click_to_search"]["p50"] > 45


@pytest.mark.parametrize("true_s", [*(0.05 * 1.09**n for n in range(130)), 1.001, 618.0, 3_600.0])
def test_a_delay_is_told_within_a_fifth(true_s: float) -> None:
    """From 50 ms to an hour: a second is not told as two, nor ten minutes as a quarter of an hour."""
    report = freshness_report([measured(exposed({"click_to_search": [true_s] * 100}))])["click_to_search"]
    assert report["p50"] == pytest.approx(true_s, rel=0.2)
    assert report["p99"] == pytest.approx(true_s, rel=0.2)


def test_nothing_measured_is_none_not_zero() -> None:
    """A way without observations has no quantiles: a zero would look like perfect freshness."""
    assert freshness_report([measured(exposed({}))])["click_to_search"] == {"p50": None, "p99": None, "count": 0.0}


def test_observations_beyond_the_last_bucket_give_its_bound() -> None:
    """A quantile in the open bucket is at least the largest bound; it is never invented beyond it."""
    report = freshness_report([measured(exposed({"product_to_search": [9_999.0]}))])
    assert report["product_to_search"]["p50"] == FRESHNESS_BUCKETS_S[-1]
