"""Start the search service: `python -m indexer.search`."""

from contracts.telemetry import Process
from indexer.search.app import serve
from service.process import run

if __name__ == "__main__":
    run(Process.SEARCH, serve)
