"""Whether a follower has read all that its topic holds at this very moment."""

from typing import Final

from kafka import KafkaConsumer, TopicPartition

from contracts.errors import DependencyDown, TransientError
from service.follow import TopicFollower
from service.kafka import consumer_config, translate_kafka_errors
from service.settings import Settings

READ_WITHIN_S: Final = 5.0


class Frontier:
    """Asks Kafka where a topic ends and waits for its follower to get there. Used by one thread at a time.

    Args:
        settings: of the deployment.
        topic: without the deployment's prefix.
        follower: of that topic.
    """

    def __init__(self, settings: Settings, topic: str, follower: TopicFollower) -> None:
        self._settings = settings
        self._topic = topic
        self._follower = follower
        with translate_kafka_errors(settings):
            self._consumer = KafkaConsumer(**consumer_config(settings))

    def reach(self) -> None:
        """Return once every record that was acknowledged before this call has been handed over.

        Raises:
            DependencyDown: Kafka does not say where the topic ends.
            MillraceError: what ended the follower, which will never get there.
            TransientError: the follower does not get there in time.
        """
        name = self._settings.topic(self._topic)
        with translate_kafka_errors(self._settings):
            numbers = self._consumer.partitions_for_topic(name)
            if not numbers:
                raise DependencyDown(f"Kafka does not know the topic {name}", fix="a restart of any service creates it")
            ends = self._consumer.end_offsets([TopicPartition(name, number) for number in numbers])
        if not self._follower.wait_for_offsets({p.partition: end for p, end in ends.items()}, READ_WITHIN_S):
            if self._follower.failure is not None:
                raise self._follower.failure
            raise TransientError(f"{name} could not be read to its end within {READ_WITHIN_S:g} s")

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()
