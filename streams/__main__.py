"""`python -m streams`: a stream worker."""

from contracts.telemetry import Process
from service.process import run
from streams.app import run_worker

if __name__ == "__main__":
    run(Process.STREAMS, run_worker)
