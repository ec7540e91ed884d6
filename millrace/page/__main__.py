"""Start the page and lag exporter: `python -m millrace.page`."""

from contracts.telemetry import Process
from millrace.page.app import serve
from service.process import run

if __name__ == "__main__":
    run(Process.PAGE, serve)
