"""Where the `millrace` command begins: Ctrl-C ends it without a traceback even while it is still being loaded."""

import signal


def main() -> None:
    """Load the command line and run it."""
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from millrace import cli

    signal.signal(signal.SIGINT, handler)
    cli.main()


if __name__ == "__main__":
    main()
