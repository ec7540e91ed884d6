"""Ports for servers that a test starts itself."""

import random

from deploy.local.plan import OTHER_PORTS, PortChooser


def free_port() -> int:
    """Return a port that nobody listens on now, and that no outgoing connection takes before the server starts."""
    chooser = PortChooser()
    try:
        return chooser.choose(random.choice(OTHER_PORTS))
    finally:
        chooser.release()
