"""Embedded Qdrant: Qdrant Edge behind the part of Qdrant's REST API that Millrace and its users call.

Reading order: `app` (routes) -> `store` (collections on disk) -> `collection` (one shard) -> `translate_*` (REST JSON
to Edge types and back). All calls into Edge run on one worker thread (`worker`), because Edge holds the interpreter's
lock while it works and its order of writes must be the order of requests.
"""
