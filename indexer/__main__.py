"""Process `indexer`: catalogue and releases -> Qdrant; the only writer of the index and of `serving`."""

from contracts.telemetry import Process
from indexer.app import serve
from service.process import run


def main() -> None:
    """Run the process."""
    run(Process.INDEXER, serve)


if __name__ == "__main__":
    main()
