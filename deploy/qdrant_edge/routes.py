"""Which path answers what: Qdrant's REST API as far as the embedded one has it, in one table."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from deploy.qdrant_edge.fields import Json
from deploy.qdrant_edge.store import Store

Names = Mapping[str, str]
"""The parts of the path: `name` of the collection or alias, `id`, `field`."""


class Route(NamedTuple):
    """One call of the API.

    Args:
        method: HTTP method.
        path: with the parts of `Names`.
        call: runs on the worker thread; takes the JSON body, None where the method has none.
    """

    method: str
    path: str
    call: Callable[[Store, Names, Json], Json]

    @property
    def has_body(self) -> bool:
        """Whether the request carries JSON."""
        return self.method in {"POST", "PUT", "PATCH"}


def _collections(store: Store, names: Names, body: Json) -> Json:
    del names, body
    return {"collections": [{"name": name} for name in store.names()]}


def _write(kind: str) -> Callable[[Store, Names, Json], Json]:
    return lambda store, names, body: store.collection(names["name"]).write(kind, body)


_NAME: Final = "/collections/{name}"
_POINTS: Final = "/collections/{name}/points"

ROUTES: Final[tuple[Route, ...]] = (
    Route("GET", "/collections", _collections),
    Route("GET", "/aliases", lambda store, names, body: store.aliases()),
    Route("POST", "/collections/aliases", lambda store, names, body: store.update_aliases(body)),
    Route("GET", _NAME, lambda store, names, body: store.collection(names["name"]).info()),
    Route("PUT", _NAME, lambda store, names, body: store.create(names["name"], body)),
    Route("PATCH", _NAME, lambda store, names, body: store.update(names["name"], body)),
    Route("DELETE", _NAME, lambda store, names, body: store.delete(names["name"])),
    Route("GET", f"{_NAME}/exists", lambda store, names, body: {"exists": store.exists(names["name"])}),
    Route("GET", f"{_NAME}/aliases", lambda store, names, body: store.aliases(names["name"])),
    Route("PUT", f"{_NAME}/index", lambda store, names, body: store.collection(names["name"]).create_index(body)),
    Route(
        "DELETE",
        f"{_NAME}/index/{{field}}",
        lambda store, names, body: store.collection(names["name"]).delete_index(names["field"]),
    ),
    Route("POST", f"{_NAME}/facet", lambda store, names, body: store.collection(names["name"]).facet(body)),
    Route("PUT", _POINTS, _write("upsert")),
    Route("POST", f"{_POINTS}/delete", _write("delete")),
    Route("POST", f"{_POINTS}/payload", _write("set_payload")),
    Route("PUT", f"{_POINTS}/payload", _write("overwrite_payload")),
    Route("POST", f"{_POINTS}/payload/delete", _write("delete_payload")),
    Route("POST", f"{_POINTS}/payload/clear", _write("clear_payload")),
    Route("PUT", f"{_POINTS}/vectors", _write("update_vectors")),
    Route("POST", f"{_POINTS}/vectors/delete", _write("delete_vectors")),
    Route("POST", f"{_POINTS}/batch", lambda store, names, body: store.collection(names["name"]).write_batch(body)),
    Route("POST", f"{_POINTS}/query", lambda store, names, body: store.collection(names["name"]).query(body)),
    Route(
        "POST", f"{_POINTS}/query/batch", lambda store, names, body: store.collection(names["name"]).query_batch(body)
    ),
    Route(
        "POST", f"{_POINTS}/query/groups", lambda store, names, body: store.collection(names["name"]).query_groups(body)
    ),
    Route("POST", f"{_POINTS}/scroll", lambda store, names, body: store.collection(names["name"]).scroll(body)),
    Route("POST", f"{_POINTS}/count", lambda store, names, body: store.collection(names["name"]).count(body)),
    Route("POST", _POINTS, lambda store, names, body: store.collection(names["name"]).retrieve(body)),
    Route("GET", f"{_POINTS}/{{id}}", lambda store, names, body: store.collection(names["name"]).get(names["id"])),
)
