"""What an index must hold once nothing happens any more, said apart from the loops: nothing missing, stale or mixed."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from contracts import wire
from contracts.catalog import CatalogChange, Product
from contracts.releases import (
    ROLLBACK,
    ROLLBACK_KEY,
    SERVING,
    SERVING_KEY,
    Rollback,
    Serving,
    manifest_of,
    release_key,
    withdrawn,
)
from indexer.catalog.planning import payload_of
from indexer.points import ProductPoint
from indexer.rollout.decisions import QUALITY_TOLERANCE
from indexer.rollout.loop import ROLLED_BACK
from tests.simulation.index_world import IndexWorld
from tests.support.indexer_fakes import OWNER
from towers.features import keys_of, product_features
from towers.model import ProductTower, product_vectors
from towers.release_files import unpack
from towers.text import product_text

SHOWN: Final = 5
VECTOR_TOLERANCE: Final = 1e-4


def problems(world: IndexWorld) -> list[str]:
    """Return everything that is wrong with what came out, in words; an empty list if nothing is."""
    if world.failures:
        return [*world.failures]
    history = world.serving()
    if not history:
        return ["nothing was ever put in force"]
    serving = max(history, key=lambda one: one.published_at)
    return [*_commits(world), *_releases(world, history, serving), *_retired(world), *_index(world, serving)]


def _newest(world: IndexWorld) -> dict[str, tuple[int, CatalogChange | None]]:
    """Return version and content of every product; None is a deletion."""
    newest: dict[str, tuple[int, CatalogChange | None]] = {}
    for one in (one for log in world.catalog for one in log):
        name = (one.key or b"").decode()
        if one.value is None:
            if name in newest:
                newest[name] = newest[name][0], None
            continue
        change = world.change(one)
        if change is None:
            continue
        version, live = newest.get(name, (-1, None))
        gone = not isinstance(change, Product)
        if change.version > version or (change.version == version and gone and live is not None):
            newest[name] = change.version, None if gone else change
    return newest


def _commits(world: IndexWorld) -> Iterator[str]:
    """Every record is committed and counted once, and what is no change is a dead letter."""
    bad = {
        (one.partition, one.offset)
        for log in world.catalog
        for one in log
        if one.value is not None and world.change(one) is None
    }
    if world.refused != bad:
        yield f"dead letters: {sorted(world.refused)} and not {sorted(bad)}"
    for number, log in enumerate(world.catalog):
        done = world.group.progress(number)
        dead = sum(partition == number for partition, _ in bad)
        counted = done.next_offset, done.counts.catalogue, done.counts.dead_lettered
        if counted != (len(log), len(log) - dead, dead):
            yield f"commit of {number}: {counted} and not {(len(log), len(log) - dead, dead)}"


def _releases(world: IndexWorld, history: list[Serving], serving: Serving) -> Iterator[str]:
    """What is in force is the newest that was not taken back, and nothing that was taken back came again."""
    if history[-1] != serving:
        yield f"compaction would keep {history[-1]}, although {serving} is in force"
    manifests = [manifest_of(value) for value in world.releases().values()]
    base = world.encoders[-1].base_version
    gone = withdrawn(serving, manifests)
    for kind in ("query", "product"):
        usable = [
            one.release for one in manifests
            if (one.kind, one.base_version) == (kind, base) and one.query_release not in gone
        ]  # fmt: skip
        in_force = serving.release_of(kind)
        if usable and (in_force < max(usable) or (kind == "query" and in_force not in usable)):
            yield f"{kind} release {in_force} is in force, and not {max(usable)}"
    asked = [wire.decode(value, ROLLBACK).requested_at for key, value in world.models if value and key == ROLLBACK_KEY]
    if asked and serving.rollback_answered < max(asked):
        yield "a rollback was not answered"
    taken_back: set[int] = set()
    for one in sorted(history, key=lambda one: one.published_at):
        if one.reason == ROLLED_BACK:  # somebody asked for it by its number
            taken_back.discard(one.query_release)
        if one.query_release in taken_back:
            yield f"query release {one.query_release} came again after it was taken back"
        taken_back |= {*range(one.withdrawn_above + 1, one.withdrawn + 1)}


def _retired(world: IndexWorld) -> Iterator[str]:
    """What was retired while it was in force or asked back is on the topic again, for whoever starts then."""
    there: set[bytes] = set()
    too_late: set[bytes] = set()
    in_force, answered, published_at = 0, 0, -1
    asked: Rollback | None = None
    for key, value in world.models:
        if value is None:
            due = {asked.query_release} if asked is not None and asked.requested_at > answered else set()
            if key in there & {release_key("query", number) for number in {in_force, *due}}:
                too_late.add(key)
            else:
                there.discard(key)
                too_late.discard(key)
        elif key == SERVING_KEY:
            one = wire.decode(value, SERVING)
            if one.published_at >= published_at:
                in_force, answered, published_at = one.query_release, one.rollback_answered, one.published_at
        elif key == ROLLBACK_KEY:
            asked = wire.decode(value, ROLLBACK)
        else:
            there.add(key)
            too_late.discard(key)
    yield from (f"{key.decode()} was retired too late and is gone" for key in sorted(too_late))


def _index(world: IndexWorld, serving: Serving) -> Iterator[str]:
    """The collection in force holds the newest state of every product, of one base, with the quality in force."""
    if (alias := world.store.alias_target(OWNER.alias)) != serving.collection:
        yield f"the alias names {alias}, and not {serving.collection}"
    points = {point.product_id: point for point in world.store.all_points(serving.collection)}
    newest = _newest(world)
    told = {message.product_id: message for message in world.vectors}
    base = world.encoders[-1].base_version
    wrong: dict[str, list[str]] = {}
    for name in sorted(points.keys() | newest.keys()):
        version, live = newest.get(name, (-1, None))
        point = points.get(name)
        message = told.get(name)
        if isinstance(live, Product):
            if message is None or (message.version, message.deleted, message.base_version) != (version, False, base):
                wrong.setdefault("on product-vectors last as something else", []).append(name)
            if (kind := _live_point(world, serving, live, point)) is not None:
                wrong.setdefault(kind, []).append(name)
        elif point is not None and not point.is_tombstone:
            wrong.setdefault("resurrected", []).append(name)
        elif message is not None and not message.deleted:
            wrong.setdefault("on product-vectors last as something else", []).append(name)
    for kind, names in wrong.items():
        yield f"{len(names)} of {len(newest)} products {kind}: {', '.join(names[:SHOWN])}"


def _live_point(world: IndexWorld, serving: Serving, live: Product, point: ProductPoint | None) -> str | None:
    """Return what is wrong with the point of a product."""
    if point is None or point.vector is None:
        return "missing"
    encoder = world.encoders[-1]
    if point.version != live.version:
        return "stale"
    if point.payload["base_version"] != encoder.base_version:
        return "mixed bases"
    said = payload_of(live)
    if (point.payload["title"], point.payload.get("price")) != (said.title, said.price):
        return "of another content"
    value = world.releases().get(release_key("product", serving.product_release))
    tower = ProductTower.untrained() if value is None else unpack(value).product_tower()
    quality = tower.quality([live.product_id], [keys_of(product_features(said))])
    expected = product_vectors(encoder.encode([product_text(live)]), quality)[0]
    differences = np.abs(np.asarray(point.vector) - expected)
    if differences[:-1].max() > VECTOR_TOLERANCE:
        return "with the vector of another text"
    return "of another quality" if abs(point.payload["quality"] - quality[0]) > 2 * QUALITY_TOLERANCE else None
