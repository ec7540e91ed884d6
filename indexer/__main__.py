"""Start the indexer: `python -m indexer`."""

from contracts.telemetry import Process
from indexer.app import serve
from service.process import run

if __name__ == "__main__":
    run(Process.INDEXER, serve)
