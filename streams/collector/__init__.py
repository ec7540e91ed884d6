"""The collector: shop events and catalogue messages over HTTP into Kafka.

Read `intake` (what becomes of one item; `sender_clock` corrects its times), then `access` (who may send), then `web`
(the HTTP edge and its two ports). `kafka_writer` and `redis_memory` are the adapters.
"""
