"""Process `search`: `/v1/search` and `/v1/encode` over the pair in force."""

from contracts.telemetry import Process
from indexer.search.app import serve
from service.process import run


def main() -> None:
    """Run the process."""
    run(Process.SEARCH, serve)


if __name__ == "__main__":
    main()
