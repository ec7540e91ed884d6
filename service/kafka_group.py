"""A repair for members of a consumer group that poll with short timeouts.

kafka-python 3.0.12 forgets a rebalance that its own leader started because the topic's metadata changed: where the
poll's timeout ends in the middle of it, `need_rejoin` turns false once the assignment is computed, nobody takes up the
finished join, and the member holds nothing for ever (kafka/coordinator/base.py, `join_group_async`). It happens at
about one start in ten on a topic that was just created.
"""

from kafka import KafkaConsumer


def keep_joining(consumer: KafkaConsumer) -> None:
    """Make the next poll take up a join that an earlier one left in the middle; call it before every poll."""
    coordinator = consumer._coordinator
    if coordinator is not None and coordinator.rejoining:
        coordinator.request_rejoin()
