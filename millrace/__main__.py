"""Where the `millrace` command begins: Ctrl-C ends it without a traceback even while it is still being loaded."""

import signal


def main() -> None:
    """Load the command line and run it."""
    # Who started the command may have it ignore the signal, which then stays ignored.
    interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interrupts:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from millrace import cli

    if interrupts:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
