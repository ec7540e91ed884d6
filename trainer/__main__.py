"""`python -m trainer`: preference pairs in, releases of both towers out."""

from contracts.telemetry import Process
from service.process import run
from trainer.app import main

if __name__ == "__main__":
    run(Process.TRAINER, main)
