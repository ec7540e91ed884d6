"""Real catalogues with human judgments, turned into worlds: `millrace world prepare NAME --into DIR`.

Nothing of them is in this repository. They come from the folder or address that the user names, else from their public
home at a fixed commit, and stay under their own licences. Clicks are simulated over what people judged; products that
nobody judged for a query count as wrong, which makes every figure on these worlds a lower bound.
"""

import csv
import gzip
import hashlib
import io
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx
import orjson

from contracts.errors import DependencyDown, UsageError
from simulator.shop.world import (
    WORLD_EPOCH_MS,
    Judgment,
    Query,
    Split,
    World,
    attraction_of,
    popularity_of,
)

TEST_EVERY: Final = 3
"""Of so many queries one is for the test."""
MOST_ATTRIBUTES: Final = 8
LONGEST_VALUE: Final = 40
TIMEOUT_S: Final = 60.0
EARLIEST_MS: Final = 946_684_800_000
"""A product message knows no launch before 2000."""
MARKUP: Final = re.compile(r"<[^>]*>|\\n")
CHORUS_GRADES: Final = (0, 1, 3, 4)
"""Of the ratings 0 to 3."""
FILM_GRADE: Final = 4
"""People only said whether a film is what was asked for."""

Contents = Mapping[str, bytes]
Fetch = Callable[[str], bytes]
Judged = dict[str, dict[str, Judgment]]
"""By the text of the query, then product_id."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A catalogue with judged queries that anybody can fetch.

    Args:
        title: what it is.
        licence: under which products and judgments stand.
        home: address below which its files are.
        files: where each lies below it; the last part of a path is its name in a folder.
        read: makes products and judgments of the files' contents, by name.
        queries: how many are taken by default; 0 for all.
    """

    title: str
    licence: str
    home: str
    files: tuple[str, ...]
    read: Callable[[Contents], tuple[list[dict[str, Any]], Judged]]
    queries: int = 0


def prepare(name: str, *, source: str | None, queries: int | None, seed: int) -> World:
    """Make the world of a data set.

    Args:
        name: one of `DATASETS`.
        source: a folder, or an address below which the files are; None for their public home.
        queries: how many are taken; 0 for all, None for as many as is usual.
        seed: of which are taken, which are for the test, and how often each is typed.

    Raises:
        UsageError: there is no such data set, a file is missing in the folder, or is not what it should be.
        DependencyDown: the files cannot be fetched.
    """
    dataset = DATASETS.get(name)
    if dataset is None:
        raise UsageError(f"there is no data set {name}", fix=f"one of: {', '.join(DATASETS)}")
    fetch = _from_folder(Path(source)) if source and "://" not in source else _from_web(source or dataset.home)
    contents = {Path(path).name: fetch(path) for path in dataset.files}
    try:
        products, judged = dataset.read(contents)
    except (ValueError, LookupError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
        fix = "fetch the files again; Git LFS may have left pointers in their place"
        raise UsageError(f"the files of {name} cannot be read: {error!r}", fix=fix) from error
    known = {product["product_id"] for product in products}
    judged = {text: {one: found[one] for one in found if one in known} for text, found in judged.items()}
    taken = _chosen(judged, seed=seed, count=dataset.queries if queries is None else queries)
    asked = tuple(
        Query(f"Q-{rank + 1:05d}", text, name, split, locale="en", popularity=popularity_of(rank))
        for rank, (text, split) in enumerate(taken)
    )
    return World(tuple(products), asked, {query.query_id: judged[query.query] for query in asked}, name=name)


def _chosen(judged: Judged, *, seed: int, count: int) -> Iterator[tuple[str, Split]]:
    """The queries that have an answer, in an order that only the seed and their texts decide, with their split."""
    answered = [text for text, found in judged.items() if any(one.grade >= 3 for one in found.values())]
    answered.sort(key=lambda text: hashlib.sha256(f"{seed}:{text}".encode()).digest())
    for rank, text in enumerate(answered[: count or None]):
        yield text, "test" if rank % TEST_EVERY == TEST_EVERY - 1 else "train"


def _from_folder(folder: Path) -> Fetch:
    def fetch(path: str) -> bytes:
        found = folder / Path(path).name
        try:
            return found.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {found}: {error.strerror}", fix=f"put {found.name} there") from error

    return fetch


def _from_web(home: str) -> Fetch:
    def fetch(path: str) -> bytes:
        address = f"{home.rstrip('/')}/{path}"
        try:
            return httpx.get(address, timeout=TIMEOUT_S, follow_redirects=True).raise_for_status().content
        except httpx.HTTPError as error:
            fix = "fetch the files elsewhere and name their folder with --from"
            raise DependencyDown(f"cannot fetch {address}: {error or type(error).__name__}", fix=fix) from error

    return fetch


def _chorus(contents: Contents) -> tuple[list[dict[str, Any]], Judged]:
    """Icecat's electronics as Chorus carries them, each query and product rated 0 to 3 by three people."""
    products = []
    for name in sorted(name for name in contents if name.endswith(".zip")):
        with zipfile.ZipFile(io.BytesIO(contents[name])) as archive:
            products += [_electronics(row) for row in orjson.loads(archive.read(archive.namelist()[0]))]
    judged: Judged = defaultdict(dict)
    for row in csv.DictReader(io.StringIO(contents["Broad_Query_Set_individual_ratings.csv"].decode())):
        single = [int(row[f"agent_{number}_rating"]) for number in (1, 2, 3)]
        meant = sum(CHORUS_GRADES[rating] for rating in single) / len(single)
        judged[row["query"]][row["docid"]] = Judgment(CHORUS_GRADES[int(row["final_rating"])], attraction_of(meant))
    return products, judged


def _electronics(row: Mapping[str, Any]) -> dict[str, Any]:
    told = ((name.removeprefix("attr_t_"), str(value)) for name, value in row.items() if name.startswith("attr_t_"))
    attributes = [(name, value) for name, value in told if 1 < len(value) <= LONGEST_VALUE]
    released_ms = round(datetime.fromisoformat(row["date_released"]).timestamp() * 1000)
    return _product(
        row["id"],
        row["title"],
        MARKUP.sub(" ", row.get("short_description") or ""),
        brand=row["supplier"],
        attributes=dict(attributes[:MOST_ATTRIBUTES]),
        price=row["price"] / 100,
        currency="EUR",
        launched_at=released_ms if released_ms >= EARLIEST_MS else None,
    )


def _films(contents: Contents) -> tuple[list[dict[str, Any]], Judged]:
    """Films of TMDB, each query with what people found among the 24 that BM25 gave: 1 for what was asked for."""
    rows = gzip.decompress(contents["movies-corpus.jsonl.gz"]).splitlines()
    products = [_film(orjson.loads(row)) for row in rows if row.strip()]
    judged: Judged = defaultdict(dict)
    table = io.StringIO(gzip.decompress(contents["movies-judgments.tsv.gz"]).decode())
    for row in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE):
        found = judged[row["query"].strip()]
        if int(row["grade"]):
            found[row["doc_id"]] = Judgment(FILM_GRADE, attraction_of(FILM_GRADE))
    return products, judged


def _film(row: Mapping[str, Any]) -> dict[str, Any]:
    people = {"director": row.get("director"), "actors": ", ".join(_some(row, "actors", 5)), "year": row.get("year")}
    attributes = {name: value for name, value in people.items() if value}
    attributes.update({f"tag_{place}": tag for place, tag in enumerate(_some(row, "tags", 3), start=1)})
    genres = _some(row, "genres", 1)
    return _product(row["id"], row["title"], row.get("overview") or "", category=genres, attributes=attributes)


def _some(row: Mapping[str, Any], name: str, most: int) -> list[str]:
    return list(row.get(name) or [])[:most]


def _product(product_id: str, title: str, description: str, **fields: Any) -> dict[str, Any]:
    told = {name: value for name, value in fields.items() if value is not None}
    own = {"product_id": str(product_id), "version": WORLD_EPOCH_MS, "title": title, "description": description}
    return {"type": "product", "schema_version": 1, **own, **told}


_CHORUS_PARTS: Final = tuple(f"data-encoder/ecommerce/vectors/data/{number}.json.zip" for number in range(1, 5))
DATASETS: Final[Mapping[str, Dataset]] = {
    "chorus": Dataset(
        title="19,406 electronics of Icecat with 135 queries rated by three people, as Chorus carries them",
        licence="products: Icecat Open Content License; ratings: Apache 2.0 (github.com/querqy/chorus)",
        home="https://raw.githubusercontent.com/querqy/chorus/96edf8b536e521be06cab910e0f6a9b25e3016fc",
        files=(*_CHORUS_PARTS, "katas/Broad_Query_Set_individual_ratings.csv"),
        read=_chorus,
    ),
    "msrd": Dataset(
        title="9,750 films with 16,279 judged queries (Movie Search Ranking Dataset), as Elastic's labs carry it",
        licence="CC BY-SA 4.0 by Metarank Labs (github.com/metarank/msrd); Elastic's adaptation says CC BY 4.0",
        home="https://raw.githubusercontent.com/elastic/elasticsearch-labs/77567655e8343607538e2ef203b4c0b322526d93",
        files=tuple(
            f"notebooks/search/sample_data/learning-to-rank/{name}"
            for name in ("movies-corpus.jsonl.gz", "movies-judgments.tsv.gz")
        ),
        read=_films,
        queries=3_000,
    ),
}
