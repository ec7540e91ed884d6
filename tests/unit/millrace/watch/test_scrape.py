"""Other processes are asked over HTTP; one that is silent, slow or strange hides no other."""

import threading

import httpx
import pytest

from contracts.errors import UsageError
from millrace.watch.scrape import ProcessView, Scraper, look_at_processes, scrape_targets
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


def test_a_ready_process() -> None:
    """It is ready, gives no reasons, and its metrics are there."""
    view = ask({"/ready": httpx.Response(200, json=READY), "/metrics": httpx.Response(200, text="a 1\n")})
    assert view == ProcessView(ready=True, reasons=(), metrics="a 1\n")


def test_a_waiting_process_gives_its_reasons() -> None:
    """It answers, so it is not silent, and its metrics still count."""
    view = ask({"/ready": httpx.Response(503, json=WAITING), "/metrics": httpx.Response(200, text="a 1\n")})
    assert view == ProcessView(ready=False, reasons=("releases: none yet",), metrics="a 1\n")


def test_a_silent_process() -> None:
    """Neither ready nor waiting: it did not answer."""
    view = ask({"/ready": httpx.ConnectError("refused")})
    assert view == ProcessView(ready=None, reasons=("does not answer: ConnectError",))


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
