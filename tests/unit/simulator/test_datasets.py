"""Real data sets become worlds: read from files as their homes have them, split by query, refused in words."""

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.errors import DependencyDown, UsageError
from simulator import datasets
from simulator.datasets import CHORUS_GRADES, DATASETS, prepare
from simulator.shop.world import Judgment, World, attraction_of, export_world, load_world

QUERIES = [f"query {number}" for number in range(12)]


def electronics(number: int, **fields: Any) -> dict[str, Any]:
    """Return a row as Chorus has it."""
    row = {
        "id": str(number),
        "name": "T5600",
        "title": f"Intel T{number} processor",
        "supplier": "Intel",
        "price": 1350,
    }
    row |= {"short_description": "Duo <br />(2M Cache)", "date_released": "2007-03-29T00:00:00Z", "ean": ["007"]}
    row |= {"attr_t_socket": "Socket 479", "attr_t_note": "x" * 99, "attr_n_frequency": 1.8}
    return row | fields


@pytest.fixture
def chorus(tmp_path: Path) -> Path:
    """Return a folder with the files of Chorus, small."""
    for part in range(1, 5):
        rows = [electronics(10 * part + one) for one in range(3)]
        with zipfile.ZipFile(tmp_path / f"{part}.json.zip", "w") as archive:
            archive.writestr(f"{part}.json", json.dumps(rows))
    table = io.StringIO()
    names = ["query", "docid", "name", "description", *(f"agent_{one}_rating" for one in (1, 2, 3)), "final_rating"]
    ratings = csv.writer(table)
    ratings.writerow(names)
    for query in QUERIES:
        ratings.writerow([query, "10", "n", "a, b", 3, 3, 2, 3])
        ratings.writerow([query, "11", "n", "", 0, 1, 0, 0])
        ratings.writerow([query, "999", "not in the catalogue", "", 3, 3, 3, 3])
    ratings.writerow(["nothing is right", "12", "n", "", 1, 1, 1, 1])
    (tmp_path / "Broad_Query_Set_individual_ratings.csv").write_text(table.getvalue())
    return tmp_path


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Return a folder with the files of MSRD, small."""
    rows: list[dict[str, Any]] = [
        {"id": str(one), "title": f"Film {one}", "overview": "Two friends.", "genres": ["Horror", "Comedy"], "tags": []}
        | {"director": "Ann Lee", "actors": ["A B", "C D"], "year": 2022, "votes": 9, "rating": 6.8}
        for one in range(5)
    ]
    rows.append({"id": "9", "title": "Bare", "overview": None, "genres": [], "director": None, "actors": None})
    (tmp_path / "movies-corpus.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    lines = ["query_id\tquery\tdoc_id\tgrade"]
    lines += [
        f'qid:{number}\t{query} "x\t{one}\t{int(one == 1)}' for number, query in enumerate(QUERIES) for one in (0, 1)
    ]
    lines += ["qid:99\tnobody found it\t0\t0"]
    (tmp_path / "movies-judgments.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return tmp_path


def of(name: str, folder: Path, *, queries: int | None = None, seed: int = 1) -> World:
    """Return the world of a data set in a folder."""
    return prepare(name, source=str(folder), queries=queries, seed=seed)


def test_rated_electronics_become_a_world(chorus: Path, tmp_path: Path) -> None:
    """Products keep their words, ratings become grades, and what the three raters said decides the attraction."""
    world = of("chorus", chorus)
    product = world.by_product_id["10"]
    assert (product["title"], product["brand"], product["price"]) == ("Intel T10 processor", "Intel", 13.5)
    assert "<" not in product["description"]
    assert product["attributes"] == {"socket": "Socket 479"}
    (judged,) = {tuple(found.items()) for found in world.judgments.values()}
    mean = (CHORUS_GRADES[3] + CHORUS_GRADES[3] + CHORUS_GRADES[2]) / 3
    assert dict(judged) == {"10": Judgment(4, attraction_of(mean)), "11": Judgment(0, attraction_of(1 / 3))}
    export_world(world, tmp_path / "world")
    assert load_world(tmp_path / "world") == world


def test_judged_films_become_a_world(films: Path, tmp_path: Path) -> None:
    """What people asked for has the highest grade; quotes in a query are letters like any other."""
    world = of("msrd", films)
    assert world.by_product_id["0"]["category"] == ["Horror"]
    assert world.by_product_id["0"]["attributes"] == {"director": "Ann Lee", "actors": "A B, C D", "year": 2022}
    assert world.by_product_id["9"]["description"] == ""
    assert {query.query for query in world.queries} == {f'{query} "x' for query in QUERIES}
    assert all(found == {"1": Judgment(4, 0.7)} for found in world.judgments.values())
    export_world(world, tmp_path / "world")
    assert load_world(tmp_path / "world") == world


@pytest.mark.parametrize("launched", ["1999-12-31T00:00:00Z", "1970-01-01T00:00:00Z"])
def test_a_launch_that_no_message_can_carry_is_left_out(launched: str) -> None:
    """The product stays."""
    assert "launched_at" not in datasets._electronics(electronics(1, date_released=launched))


def test_splits_are_by_query_and_the_seeds_alone(films: Path) -> None:
    """A third is for the test; the same seed chooses alike, fewer queries are a part of more, popularity falls."""
    world, again, other = (of("msrd", films, seed=seed) for seed in (1, 1, 2))
    assert world == again
    assert [query.query for query in world.queries] != [query.query for query in other.queries]
    assert (len(world.of_split("train")), len(world.of_split("test"))) == (8, 4)
    assert of("msrd", films, queries=5).queries == world.queries[:5]
    assert of("msrd", films, queries=0).queries == world.queries
    popularity = [query.popularity for query in world.queries]
    assert popularity == sorted(popularity, reverse=True)


def test_queries_without_an_answer_are_left_out(chorus: Path) -> None:
    """Who finds nothing right cannot be served better."""
    assert {query.query for query in of("chorus", chorus).queries} == set(QUERIES)


def test_an_unknown_data_set_is_refused_with_those_there_are() -> None:
    """The fix names them."""
    with pytest.raises(UsageError, match="no data set imdb") as raised:
        prepare("imdb", source=None, queries=None, seed=1)
    assert "chorus, msrd" in raised.value.fix


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A folder without the files is refused by the file that is not there."""
    with pytest.raises(UsageError, match=r"movies-corpus\.jsonl\.gz"):
        of("msrd", tmp_path)


@pytest.mark.parametrize("name", ["msrd", "chorus"])
def test_pointers_of_git_lfs_are_told_as_such(name: str, tmp_path: Path) -> None:
    """Files that are not what they should be are refused with a hint, not with a traceback."""
    for path in DATASETS[name].files:
        (tmp_path / Path(path).name).write_text("version 1 of a pointer\n")
    with pytest.raises(UsageError, match="cannot be read") as raised:
        of(name, tmp_path)
    assert "LFS" in raised.value.fix


@pytest.mark.parametrize(("corpus", "judgments"), [("[1]\n", "a\t1\t1\n"), ('{"id": 1, "title": "x"}\n', "a\t1\n")])
def test_rows_of_another_form_are_told_as_well(corpus: str, judgments: str, tmp_path: Path) -> None:
    """A line that is no object, or that is cut."""
    (tmp_path / "movies-corpus.jsonl.gz").write_bytes(gzip.compress(corpus.encode()))
    (tmp_path / "movies-judgments.tsv.gz").write_bytes(gzip.compress(f"query\tdoc_id\tgrade\n{judgments}".encode()))
    with pytest.raises(UsageError, match="cannot be read"):
        of("msrd", tmp_path)


def serve(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[str]:
    """Let an answer stand for the web; return the addresses that are asked for."""
    asked: list[str] = []

    def get(address: str, **_: Any) -> httpx.Response:
        asked.append(address)
        status, content = answer(address)
        return httpx.Response(status, content=content, request=httpx.Request("GET", address))

    monkeypatch.setattr(httpx, "get", get)
    return asked


@pytest.mark.parametrize("source", [None, "https://mirror.example/data/"])
def test_files_come_from_their_home_or_a_given_address(
    source: str | None, films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both give the world that the folder gives; the home is at a fixed commit."""
    asked = serve(monkeypatch, lambda address: (200, (films / Path(address).name).read_bytes()))
    world = prepare("msrd", source=source, queries=None, seed=1)
    assert world == of("msrd", films)
    home = (source or DATASETS["msrd"].home).rstrip("/")
    assert asked == [f"{home}/{path}" for path in DATASETS["msrd"].files]


def test_a_home_that_cannot_be_reached_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a refusal nor silence ends in a traceback; the address is named."""
    serve(monkeypatch, lambda _: (404, b""))
    with pytest.raises(DependencyDown, match="movies-corpus") as raised:
        prepare("msrd", source=None, queries=None, seed=1)
    assert "--from" in raised.value.fix


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_states_its_licence_and_a_fixed_home(name: str) -> None:
    """Whoever makes a world learns under which licence it stands; a home that moves would change figures."""
    assert any(word in DATASETS[name].licence for word in ("CC BY", "Open Content", "Apache"))
    assert len(DATASETS[name].home.rsplit("/", 1)[1]) == 40
