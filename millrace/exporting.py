"""`millrace catalog vectors`: the product vectors in force as a file, for a shop whose own engine stays where it is."""

import base64
import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer

from contracts.errors import TransientError, UsageError
from deploy.local.state import load_running_settings
from millrace.explaining import following_models, in_force
from millrace.output import Json, counted, messages, out, print_json, progress_bars
from service.machine import replacing
from service.settings import Settings

if TYPE_CHECKING:
    from indexer.points import ProductPoint
    from indexer.store import ProductStore
    from service.models import ModelsTable

TOLD_EVERY: Final = 1000
STDOUT: Final = Path("-")


class VectorForm(StrEnum):
    """How the numbers of a vector are written."""

    NUMBERS = "numbers"
    """A JSON list, as engines take it."""
    FLOAT32 = "float32"
    """Base64 of little-endian bytes, a third of the size."""
    FLOAT16 = "float16"
    """Half of that again; about three digits."""


def catalog_vectors(
    file: Annotated[Path, typer.Argument(help="JSON lines to write, packed by gzip if it is called *.gz.")],
    form: Annotated[VectorForm, typer.Option(help="numbers, or base64 of float32 or float16.")] = VectorForm.NUMBERS,
    json: Json = False,
) -> None:
    """Write the vector of every product on sale, its quality as the last number, for another engine.

    Ask `/v1/encode` for the vector of a query and what is `remembered` of it; a score is the inner product and that.

    Example: millrace catalog vectors vectors.jsonl.gz
    """
    settings = load_running_settings()
    with progress_bars() as tell:
        report = export_vectors(settings, file, form, tell)
    if json:
        print_json(report)
        return
    out().print(f"{counted(report['products'], 'vector')} of {report['width']} numbers written to {file}")
    messages().print(f"product release {report['product_release']}; export again after the next one")


def export_vectors(
    settings: Settings, file: Path, form: VectorForm, tell: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Write the file and report what it holds.

    Raises:
        TransientError: another collection came into force meanwhile; nothing was written.
        DependencyDown: a server does not answer.
    """
    from indexer.qdrant import connect
    from indexer.store import ProductStore

    settings.require("kafka_bootstrap", "qdrant_url")
    with following_models(settings) as models, closing(ProductStore(connect(settings))) as store:
        serving = in_force(models)
        total = store.counts(serving.collection).live
        lines = vector_lines(_of_one_collection(store, models), form)
        products = write_lines(file, lines, lambda done: tell("vectors", done, max(done, total)))
        width = store.form(serving.collection).width
    return {"file": str(file), "products": products, "width": width, "form": form.value,
            "collection": serving.collection, "product_release": serving.product_release}  # fmt: skip


def _of_one_collection(store: "ProductStore", models: "ModelsTable") -> "Iterator[ProductPoint]":
    """Every point in force; fails at the end if another collection came into force, which may be of another base."""
    collection = in_force(models).collection
    yield from store.all_points(collection)
    if (now := in_force(models).collection) != collection:
        raise TransientError(f"{now} came into force meanwhile; nothing was written", fix="run it again")


def vector_lines(points: "Iterable[ProductPoint]", form: VectorForm) -> Iterator[bytes]:
    """One JSON line for each product on sale.

    Args:
        points: of the collection in force; tombstones are left out.
        form: of the numbers.
    """
    import numpy as np

    for point in points:
        if point.vector is None:
            continue
        numbers = np.asarray(point.vector, dtype="<f4")
        line: Mapping[str, Any] = {
            "product_id": point.product_id,
            "version": point.version,
            "product_release": point.product_release,
            "base_version": point.payload.get("base_version"),
            "vector": numbers if form is VectorForm.NUMBERS else _packed(numbers.astype(_TYPES[form])),
        }
        yield orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


_TYPES: Final[Mapping[VectorForm, str]] = {VectorForm.FLOAT32: "<f4", VectorForm.FLOAT16: "<f2"}


def _packed(numbers: Any) -> str:
    return base64.b64encode(numbers.tobytes()).decode()


def write_lines(path: Path, lines: Iterable[bytes], tell: Callable[[int], None]) -> int:
    """Write lines to a file that is whole or absent; return how many there were.

    Raises:
        OSError: it cannot be written.
        UsageError: it is no file but standard output, where nothing can be taken back.
    """
    if path == STDOUT:
        raise UsageError(f"{STDOUT} is no file", fix="name a file: it is there once it is whole")
    count = 0
    with replacing(path) as whole, gzip.open(whole, "wb") if path.suffix == ".gz" else nullcontext(whole) as file:
        for count, line in enumerate(lines, start=1):
            file.write(line)
            if count % TOLD_EVERY == 0:
                tell(count)
    tell(count)
    return count
