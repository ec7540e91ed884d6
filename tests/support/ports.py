"""Ports for servers that a test starts itself."""

import os
import random

from deploy.local.plan import OTHER_PORTS, PortChooser

TRIES = 50


def free_port() -> int:
    """Return a port that nobody listens on now, and that no outgoing connection takes before the server starts.

    Each of several test processes has ports of its own, so that no two give the same one.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ours = OTHER_PORTS[worker :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]
    chooser = PortChooser()
    try:
        return chooser.choose(*random.sample(ours, TRIES))
    finally:
        chooser.release()
