"""`python -m tests.support.toy_worker`: a stream worker whose registry has one more line, that of the toy agent."""

from contracts.telemetry import Process
from service.process import run
from streams import registry
from streams.app import run_worker
from tests.support.toy_agent import TOY

if __name__ == "__main__":
    registry.AGENTS = (*registry.AGENTS, TOY)  # type: ignore[misc] # the line that the recipe adds
    run(Process.STREAMS, run_worker)
