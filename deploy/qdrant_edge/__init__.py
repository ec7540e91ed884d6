"""Embedded Qdrant: Qdrant Edge behind the part of Qdrant's REST API that Millrace and its users call.

Reading order: `api` (routes) -> `worker` (who may speak to Edge, and when) -> `store` (collections on disk) ->
`collection` (one shard) -> `config`, `points`, `queries`, `conditions`, `groups` (from the models of `qdrant_client` to
Edge's types). `requests` reads a body into such a model; `errors` says what a client is told.
"""
