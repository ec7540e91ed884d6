"""How long a new product waits behind a bulk load: `python -m tests.support.behind_bulk [PRODUCTS] [WORDS]`.

A deployment of its own with the base model of the settings. All products are sent at once, each with a text of so many
words of its own, then one more, ten times over; found means that the store returns it.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from deploy.local.supervisor import LocalMillrace
from indexer.qdrant import connect
from indexer.store import ProductStore
from tests.support.indexing import Shop, product

LAUNCHES = 10
EVERY_S = 5.0


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Print what was sent how fast, and each wait."""
    products, words = (
        int(sys.argv[place]) if len(sys.argv) > place else default for place, default in ((1, 100_000), (2, 30))
    )
    drawn = np.random.default_rng(1)

    def text() -> str:
        """Draw a description."""
        return " ".join(f"word{number}" for number in drawn.integers(0, 3_000, words))

    with (
        tempfile.TemporaryDirectory(prefix="millrace-bulk-") as folder,
        LocalMillrace(processes=["kafka", "qdrant", "indexer"], data_dir=Path(folder)) as running,
    ):
        shop, store = Shop(running.settings), ProductStore(connect(running.settings))
        began = time.monotonic()
        for start in range(0, products, 5_000):
            shop.send(*(product(f"P-{start + number}", description=text()) for number in range(5_000)))
        say(f"{products:,} products sent in {time.monotonic() - began:.1f} s")
        for number in range(LAUNCHES):
            sent_at = time.monotonic()
            shop.send(product(f"N-{number}", description=text()))
            while not store.retrieve(running.settings.collection(0), [f"N-{number}"]):
                time.sleep(0.02)
            waited_s = time.monotonic() - sent_at
            live = store.counts(running.settings.collection(0)).live
            say(f"found after {waited_s:.2f} s, {products + number + 1 - live:,} others still to come")
            time.sleep(EVERY_S)
        store.close()
        shop.close()


if __name__ == "__main__":
    main()
