"""A supervisor in the foreground, of Kafka, Redis and one stand-in process, for tests that end it by signals."""

from deploy.local.processes import ProcessSpec
from deploy.local.up import run_until_stopped

TABLE = {"collector": ProcessSpec("collector", "tests.support.dummies.steady", needs=("kafka", "redis"))}

if __name__ == "__main__":
    run_until_stopped(table=TABLE)
