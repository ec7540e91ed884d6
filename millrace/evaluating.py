"""`millrace releases evaluate`: what held-out lists say of a release beside another on the same lists."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from contracts.errors import UsageError
from contracts.outcomes import cell_of
from contracts.propensities import Propensities
from contracts.topics import HOLDOUT_SEARCHES, PRODUCT_VECTORS
from millrace.asking import numbers, running_settings
from millrace.explaining import following_models, in_force
from millrace.output import Json, Tell, out, print_json, progress_bars
from service.kafka import records_of

if TYPE_CHECKING:
    import numpy as np

    from service.settings import Settings
    from towers.release_files import Encoder
    from trainer.learner import Products, Towers
    from trainer.release.held_out import Estimate
    from trainer.release.held_out_lists import HeldOutList

HEAD_LISTS: Final = 10
"""Held-out lists from which a query is a head query."""
MOST_LABELS: Final = 8
"""Of a slice: the most frequent ones; the others are told together."""


def releases_evaluate(
    release: Annotated[int | None, typer.Argument(min=0, help="Query release; by default the one in force.")] = None,
    against: Annotated[int, typer.Option(min=0, help="Query release that it is compared with; 0 is untrained.")] = 0,
    json: Json = False,
) -> None:
    """Estimate from held-out lists by how many clicks a list one release exceeds another.

    Needs MILLRACE_HOLDOUT_SHARE above 0 at the stream workers. It re-ranks what was shown and takes clicks for looks
    times appeal; what no list showed it cannot judge. Loads the base encoder, which takes some seconds.

    Example: millrace releases evaluate 57 --against 41
    """
    settings = running_settings()
    with progress_bars() as tell:
        report = evaluate_releases(settings, release, against, tell)
    if json:
        print_json(report)
        return
    out().print(evaluation_table(report))
    out().print(evaluation_words(report), highlight=False)


def evaluate_releases(settings: "Settings", release: int | None, against: int, tell: Tell) -> dict[str, Any]:
    """Read everything from Kafka and report.

    Raises:
        UsageError: no list was held out, or a release is not there or of another base model.
        DependencyDown: Kafka does not answer.
    """
    from towers.encoder import load_encoder
    from trainer.adapters.held_out_looks import propensities_of, query_file, towers_of
    from trainer.adapters.vectors import VectorTable
    from trainer.release.held_out_lists import held_out_lists

    settings.require("kafka_bootstrap")
    with following_models(settings) as models, tempfile.TemporaryDirectory() as folder:
        number = in_force(models).query_release if release is None else release
        for one in (number, against):
            query_file(models, one)
        records = records_of(settings, HOLDOUT_SEARCHES, tell=lambda done, of: tell("reading held-out lists", done, of))
        lists, left_out = held_out_lists(record.value for record in records)
        if not lists:
            raise UsageError(
                f"{HOLDOUT_SEARCHES} has no list that counts ({_reasons(left_out)})",
                fix="set MILLRACE_HOLDOUT_SHARE for the stream workers, say 0.05; it is 0 by default, and nothing is "
                "learned from a list that is held out",
            )
        propensities = propensities_of(settings)
        encoder = load_encoder(settings.base_model)
        ours, theirs = (towers_of(models, one, encoder) for one in (number, against))
        vectors = VectorTable(Path(folder), encoder.dim, base_version=encoder.base_version)
        for record in records_of(
            settings, PRODUCT_VECTORS, tell=lambda done, of: tell("reading product vectors", done, of)
        ):
            vectors.on_record(record.key or b"", record.value, record.timestamp)
        report = evaluation_report(
            lists, ours, theirs, products=vectors, encoder=encoder,
            propensities=propensities.lookup, share=settings.holdout_share, tell=tell,
        )  # fmt: skip
    report["left_out"] = dict(sorted(left_out.items()))
    return {"query_release": number, "against": against, **report}


def evaluation_report(
    lists: "Sequence[HeldOutList]",
    ours: "Towers",
    theirs: "Towers",
    *,
    products: "Products",
    encoder: "Encoder",
    propensities: Propensities,
    share: float,
    tell: Tell,
) -> dict[str, Any]:
    """Score what the lists show under two releases, and put the estimate into stable JSON.

    Args:
        lists: held out; a product that the catalogue does not know any more is left out of them.
        ours: towers of the release in question.
        theirs: towers of the other.
        products: the catalogue.
        encoder: of queries.
        propensities: those of every moment.
        share: of shoppers and queries that are held out.
        tell: told how far the queries are encoded.

    Raises:
        DependencyDown: the catalogue knows none of their products.
    """
    from trainer.release.held_out import evaluate
    from trainer.release.held_out_lists import known_slots

    found = known_slots(lists, products, encoder, tell=tell)
    arrays = found.arrays(propensities)._replace(slices=_slices(lists, share))
    estimate = evaluate(arrays, found.scores(ours), found.scores(theirs))
    unestimated = sum(propensities.theta(cell_of(one.search), 1, one.search.search_time)[1] == 0 for one in lists)
    return _report(
        estimate, slots=len(found.slots), unknown=found.unknown, unestimated=unestimated, share=share
    )  # fmt: skip


def _slices(lists: "Sequence[HeldOutList]", share: float) -> "dict[str, np.ndarray]":
    """The label of each list, (L,), by slice."""
    import numpy as np

    from streams.pairs.filters import is_held_out_query
    from towers.text import normalised

    queries = [normalised(one.search.query) for one in lists]
    times = Counter(queries)

    def kind(query: str) -> str:
        if is_held_out_query(query, share):
            return "first time"
        return "head" if times[query] >= HEAD_LISTS else "tail"

    return {
        "query": np.array([kind(query) for query in queries]),
        "device": _labels([one.search.device for one in lists]),
        "layout": _labels([one.search.layout for one in lists]),
        "arm": _labels([one.search.ranking.arm for one in lists]),
    }


def _labels(names: Sequence[str | None]) -> "np.ndarray":
    import numpy as np

    frequent = {name for name, _ in Counter(names).most_common(MOST_LABELS)}
    return np.array([(name or "not said") if name in frequent else "other" for name in names])


def _report(estimate: "Estimate", *, slots: int, unknown: int, unestimated: int, share: float) -> dict[str, Any]:
    return {
        **estimate.difference._asdict(),
        "slots": slots,
        "slots_of_unknown_products": unknown,
        "moved": estimate.moved,
        "effective_lists": round(estimate.effective_lists, 1),
        "clipped_share": round(estimate.clipped_share, 4),
        "lists_by_the_prior": unestimated,
        "holdout_share": share,
        "slices": [
            {"slice": name, "label": label, **one._asdict()}
            for name, labels in estimate.slices.items()
            for label, one in labels.items()
        ],
    }


def evaluation_table(report: Mapping[str, Any]) -> Table:
    """The estimate as a table, a line for each part of each slice that has more than one."""
    title = f"query release {report['query_release']} against {report['against']}, on the same held-out lists"
    table = Table(
        "of", *numbers("lists", "persons", "queries", "clicks", "clicks a list", "95 % interval"), "it is", title=title
    )
    table.add_row("all", *_cells(report), end_section=True)
    rows = report["slices"]
    for name in dict.fromkeys(row["slice"] for row in rows):
        parts = [row for row in rows if row["slice"] == name]
        for row in parts if len(parts) > 1 else ():
            table.add_row(Text(f"{name}: {row['label']}"), *_cells(row), end_section=row is parts[-1])
    return table


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    figures = tuple(f"{row[name]:,}" for name in ("lists", "persons", "queries", "clicks"))
    if row["value"] is None:
        return (*figures, "-", "-", "too little")
    return (*figures, f"{row['value']:+.4f}", f"{row['low']:+.4f} to {row['high']:+.4f}", row["verdict"])


def evaluation_words(report: Mapping[str, Any]) -> str:
    """What the estimate says, and what it cannot tell, in sentences."""
    from trainer.release.held_out import LEAST_CLICKS, LEAST_LISTS, LEAST_PERSONS, LEAST_QUERIES

    name, other = (f"release {report[one]}" for one in ("query_release", "against"))
    more = report["more_lists"]
    verdict = {
        "better": f"{name} is better than {other} on these lists.",
        "worse": f"{name} is worse than {other} on these lists.",
        "equal": f"{name} and {other} rank every list alike.",
        "undecided": f"It cannot tell {name} from {other}: "
        + (
            "too small a difference."
            if more is None
            else f"chance hides it; with about {more:,} more lists, of as many more persons and queries, it would not. "
            "What is not known of propensities may still do so."
        ),
        "propensities": f"It cannot tell {name} from {other}: that depends on how much more rarely lower positions are "
        "looked at, which is not known well enough. Exchanged neighbours tell (MILLRACE_SWAP_SHARE).",
        "too_little": f"Too little to say anything: it takes {LEAST_LISTS} lists with {LEAST_CLICKS} clicks, of "
        f"{LEAST_PERSONS:g} persons and {LEAST_QUERIES:g} queries at least, none of which has most of the lists.",
    }[report["verdict"]]
    lines = [
        verdict,
        f"{report['moved']:,} lists are ordered differently, worth {report['effective_lists']:,.0f} of equal weight; "
        f"clipping takes {report['clipped_share']:.1%} of the weight of clicks.",
        "It re-ranks what was shown, under a position-based model: it cannot judge what no list showed.",
        "Lists that a release chose itself make it look worse than it is: compare `arm: live` with `arm: anchor`.",
        "The interval is of one look; part of the lists, one of twenty is wrong by chance.",
    ]
    if report["holdout_share"]:
        lines.append(f"first time: queries held out by a share of {report['holdout_share']:g}, as this command is set.")
    else:
        lines.append(
            "No part `first time`: MILLRACE_HOLDOUT_SHARE of this command is 0. Set it as the stream workers have it."
        )
    if report["lists_by_the_prior"]:
        lines.append(
            f"{report['lists_by_the_prior']:,} lists are of times before propensities were estimated: 1/position, and "
            "its whole range, stand for them."
        )
    if report["left_out"] or report["slots_of_unknown_products"]:
        gone = report["slots_of_unknown_products"]
        lines.append(f"Left out: lists {_reasons(report['left_out'])}; {gone:,} slots whose product is gone.")
    return "\n".join(lines)


def _reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "none"
