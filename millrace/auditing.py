"""`millrace audit`: whether search answers from what the shop sent, and the repair through `catalog` if it does not.

A repair never writes to the vector store: the newest record of a product is sent again with a mark, and the indexer
that owns its partition makes vector and point anew, newer-only but for what is of the same version.
"""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from kafka import KafkaProducer
from rich.table import Table
from rich.text import Text

from contracts import wire
from contracts.catalog import ProductDeleted, ProductVector
from contracts.errors import CheckFailed, ContractError, DependencyDown
from contracts.telemetry import AuditDifference
from contracts.topics import AGAIN_HEADER, CATALOG, PRODUCT_VECTORS
from deploy.local.state import load_running_settings
from millrace.backlog import Backlog
from millrace.explaining import following_models, in_force, product_tower
from millrace.importing import MOST_DELETED_RATIO, read_catalogue
from millrace.output import Json, Tell, counted, out, print_json, progress_bars
from service.kafka import (
    OutgoingRecord,
    admin,
    open_consumer,
    produce_all,
    producer_config,
    records_of,
    translate_kafka_errors,
)
from service.machine import epoch_ms
from service.settings import Settings

if TYPE_CHECKING:
    from indexer.audit import Encoded, Repairs
    from indexer.auditor import Auditor, Report
    from indexer.catalog.base_vectors import BaseProduct
    from indexer.catalog.planning import CatalogRecord
    from indexer.catalog.sent import SentProducts
    from indexer.points import Target
    from service.models import ModelsTable

EXAMPLES: Final = 20
NO_PROGRESS_S: Final = 60.0
"""How long a repair waits for indexers that commit nothing."""
BATCH: Final = 500
WRONG: Final = frozenset({AuditDifference.VECTOR_WRONG, AuditDifference.POINT_WRONG, AuditDifference.QUALITY_WRONG})


def audit(
    sample: Annotated[int, typer.Option(min=0, help="Of how many products numbers are computed again.")] = 64,
    repair: Annotated[bool, typer.Option("--repair", help="Send again what differs, and look again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Also if much is found that nobody sent, and so deleted.")] = False,
    json: Json = False,
) -> None:
    """Compare catalogue, base vectors and index. Exit code 3 if a product differs, or still does after --repair.

    Changes that are on their way are no differences. A sample loads the base encoder, which takes some seconds.

    Example: millrace audit --repair
    """
    settings = load_running_settings()
    with progress_bars() as tell:
        report = run_audit(settings, tell, sample=sample, repair=repair, yes=yes)
    print_json(report) if json else out().print(audit_table(report))
    left = report["differences"] if report["left"] is None else report["left"]
    if total := sum(left.values()):
        fix = "see the indexer's log for what it refuses" if repair else "`millrace audit --repair` sends them again"
        raise CheckFailed(f"{counted(total, 'difference')} between the catalogue and the index", fix=fix)


def run_audit(settings: Settings, tell: Tell, *, sample: int, repair: bool, yes: bool) -> dict[str, Any]:
    """Compare, repair if told to, and put what was found into stable JSON.

    Args:
        settings: of the deployment.
        tell: told the progress.
        sample: of how many products numbers are compared; 0 loads no encoder.
        repair: send again what differs, wait until it is worked off, and compare once more.
        yes: also delete more of what nobody sent than `MOST_DELETED_RATIO` of the catalogue.

    Raises:
        CheckFailed: a repair would delete that much.
        DependencyDown: a server does not answer, or no indexer works off what was sent again.
    """
    from indexer.audit import plan_repairs
    from indexer.catalog.sent import SentProducts

    with open_auditor(settings, with_numbers=sample > 0) as auditor:
        found = auditor.run(sample=sample, seed=epoch_ms(), tell=tell)
        report = audit_report(found)
        if not repair or not found.differences:
            return report
        repairs = plan_repairs(found.differences, found.sent)
        refuse_unsafe(repairs, found.products, yes=yes)
        sent = SentProducts(repairs.again | repairs.delete.keys())
        sent_to = send_repairs(settings, repairs, auditor.newest_records(sent), sent)
        wait_worked_off(settings, sent_to, tell)
        wrong = [difference.product_id for difference in found.differences if difference.kind in WRONG]
        left = auditor.run(sample=wrong, tell=tell)
        return {**report, "repaired": len(sent_to), "left": left.counts()}


def refuse_unsafe(repairs: "Repairs", products: int, *, yes: bool) -> None:
    """Raise if a repair would delete much of the shop, as after the loss of the topic `catalog`."""
    if len(repairs.delete) > MOST_DELETED_RATIO * products and not yes:
        raise CheckFailed(
            f"{len(repairs.delete):,} products are there that nobody sent, and the catalogue holds {products:,}; "
            "nothing was repaired",
            fix="send the catalogue again if its topic was lost; --yes deletes them",
        )


def send_repairs(
    settings: Settings, repairs: "Repairs", records: "Mapping[str, CatalogRecord]", sent: "SentProducts"
) -> list[tuple[int, int]]:
    """Send repairs, acknowledged; return the (partition, offset) of each.

    What the shop has overtaken is left out: as the last record of its key it would be all that compaction keeps.

    Args:
        settings: of the deployment.
        repairs: to send.
        records: product -> the record that is sent again.
        sent: what `catalog` held when those were read; it is read on before each batch.
    """
    topic, mark = settings.topic(CATALOG), [(AGAIN_HEADER, b"audit")]
    known = {product_id: one for product_id, one in sent.newest.items() if product_id in repairs.again}
    outgoing = {
        name: OutgoingRecord(topic, one.value, one.key, mark, one.partition)
        for name, one in records.items()
        if name in repairs.again
    }
    for product_id, version in repairs.delete.items():
        gone = ProductDeleted(type="product_deleted", product_id=product_id, version=version)
        outgoing[product_id] = OutgoingRecord(topic, wire.encode(gone), product_id.encode(), mark)
    places: list[tuple[int, int]] = []
    with (
        translate_kafka_errors(settings),
        open_consumer(settings) as consumer,
        KafkaProducer(**producer_config(settings)) as producer,
    ):
        for start in range(0, len(outgoing), BATCH):
            batch = list(outgoing)[start : start + BATCH]
            read_catalogue(consumer, settings, sent)
            overtaken = {name for name in batch if sent.newest.get(name) != known.get(name)} | sent.unreadable()
            places += produce_all(producer, [outgoing[name] for name in batch if name not in overtaken])
    return places


def wait_worked_off(settings: Settings, places: Sequence[tuple[int, int]], tell: Tell) -> None:
    """Wait until the indexers have committed past some records.

    Raises:
        DependencyDown: they commit nothing for `NO_PROGRESS_S`.
    """
    with admin(settings) as client:
        backlog = Backlog(settings, client)
        backlog.add(places)

        def told(left: int) -> None:
            tell("repair", max(len(places) - left, 0), len(places))

        if not backlog.wait(0, patience_s=NO_PROGRESS_S, tell=told):
            raise DependencyDown(
                f"no indexer works off the last records of {CATALOG}",
                fix="see `millrace status`; what was sent again stands there and is worked off by the next one",
            )


@contextmanager
def open_auditor(settings: Settings, *, with_numbers: bool) -> "Iterator[Auditor]":
    """Give an auditor from outside: it reads everything from Kafka and the vector store."""
    from indexer.auditor import Auditor
    from indexer.qdrant import connect
    from indexer.store import ProductStore
    from towers.encoder import load_encoder

    settings.require("kafka_bootstrap", "qdrant_url")
    with ExitStack() as stack:
        models = stack.enter_context(following_models(settings))
        store = ProductStore(connect(settings))
        stack.callback(store.close)
        encoder = load_encoder(settings.base_model) if with_numbers else None
        base_version = None if encoder is None else encoder.base_version
        yield Auditor(
            settings,
            store,
            vectors=lambda: vectors_on_topic(settings),
            base_vectors=lambda product_ids: base_vectors_on_topic(settings, product_ids, base_version),
            target=lambda: target_of(models),
            encoder=encoder,
            pause=threading.Event().wait,
        )


def target_of(models: "ModelsTable") -> "Target":
    """The collection in force, with the tower of the product release in force."""
    from indexer.points import Target

    serving = in_force(models)
    return Target(serving.collection, serving.product_release, product_tower(models, serving.product_release))


def vectors_on_topic(settings: Settings) -> "Iterator[tuple[str, Encoded | None]]":
    """Read `product-vectors`, without the numbers; a null is None."""
    from indexer.audit import Encoded

    for product_id, message, _ in _messages(settings):
        yield product_id, None if message is None else Encoded.of(message)


def base_vectors_on_topic(
    settings: Settings, product_ids: Collection[str], base_version: str | None
) -> "Mapping[str, BaseProduct]":
    """Read some products of `product-vectors` whole, the newest state of each in one base."""
    from indexer.catalog.base_vectors import BaseProduct, BaseVectors

    wanted, known = frozenset(product_ids), BaseVectors(base_version)
    for product_id, message, written_at_ms in _messages(settings):
        if product_id in wanted and message is not None:
            known.read(BaseProduct.from_message(message), written_at_ms)
        elif product_id in wanted:
            known.read_null(product_id, written_at_ms)
    return {product_id: product for product_id in wanted if (product := known.get(product_id)) is not None}


def _messages(settings: Settings) -> Iterator[tuple[str, ProductVector | None, int]]:
    """Read `product-vectors`: product, what is known of it or None, and when that was written."""
    from pydantic import TypeAdapter

    contract = TypeAdapter(ProductVector)
    for record in records_of(settings, PRODUCT_VECTORS):
        try:
            message = None if record.value is None else wire.decode(record.value, contract)
            product_id = (record.key or b"").decode() if message is None else message.product_id
        except (ContractError, UnicodeDecodeError):
            continue  # the indexers say so in their logs, and pass it over too
        yield product_id, message, record.timestamp


def audit_report(found: "Report") -> dict[str, Any]:
    """Put an audit into stable JSON."""
    examples = [difference._asdict() for difference in found.differences[:EXAMPLES]]
    return {
        "collection": found.collection,
        "base_version": found.base_version,
        "products": found.products,
        "pending": found.pending,
        "sampled": found.sampled,
        "differences": found.counts(),
        "examples": examples,
        "repaired": 0,
        "left": None,
    }


def audit_table(report: Mapping[str, Any]) -> Table:
    """An audit as a table: a line for each way in which products differ, with one of them."""
    looked_at = f"{counted(report['products'], 'product')}, {report['sampled']:,} computed again"
    total = sum(report["differences"].values())
    title = f"{looked_at}, {counted(report['pending'], 'change')} under way: {counted(total, 'difference')}"
    table = Table("difference", "products", "for one", "left", title=title)
    for kind, count in report["differences"].items():
        one = next((example["product_id"] for example in report["examples"] if example["kind"] == kind), "")
        left = "" if report["left"] is None else f"{report['left'][kind]:,}"
        if count or left not in {"", "0"}:
            table.add_row(kind, f"{count:,}", Text(one), left)
    return table
