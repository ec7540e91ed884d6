"""The collector: shop events and catalogue messages over HTTP into Kafka.

Read `intake` (what becomes of one item), `access` (who may send), then `app` (the HTTP edge). `kafka_writer` and
`redis_memory` are the two adapters behind `ports`.
"""
