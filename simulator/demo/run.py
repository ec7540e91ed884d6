"""Around the demo: a deployment of its own in which nothing was learned yet, and a clean end by any signal."""

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from contracts.errors import MillraceError, UsageError
from deploy.local.foreground import SIGNALS, stopping_on_signals
from deploy.local.state import is_running
from deploy.local.supervisor import LocalMillrace
from millrace.output import messages, out
from service.settings import Settings, load_settings
from simulator.demo.phases import Demo, DemoOptions
from simulator.shop.builtin import world_of

COMPRESSED: Final[dict[str, Any]] = {
    "join_window_s": 3.0,
    "lateness_s": 1.0,
    "product_release_interval_s": 45.0,
}
"""Shoppers report within 2 s in the demo, so a search may close after 3 s; product releases come within the minute."""


def run_demo(options: DemoOptions) -> None:
    """Run the demo and show its closing screen.

    Raises:
        UsageError: a demo already runs here, or the world's folder is wrong.
        DependencyDown: something that is needed is missing.
        CheckFailed: the chain did not do its work in time.
    """
    console = messages()
    _require_writable(options.json_file)
    began = time.monotonic()
    console.print(f"building the shop's world (seed {options.seed})" if options.world is None else "reading the world")
    world = world_of(options.world, options.seed)
    overrides = fresh_deployment(load_settings())
    ended = False
    with stopping_on_signals(), LocalMillrace(overrides, on_progress=_progress_printer(console, began)) as running:
        ended = asyncio.run(until_signalled(Demo(options, world, running, console).run()))
        if ended and (options.keep or (out().is_terminal and console.is_terminal)):
            _serve_until_stopped(console)
            console.print("stopping")
    if not ended:
        raise MillraceError("the demo was stopped before its end", fix="`make demo` begins anew")


async def until_signalled(work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` to its end or until a signal asks for the stop; return whether it came to its end."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    for number in SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return False
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
    return True


def _require_writable(file: Path | None) -> None:
    """Refuse a place for the figures that could not be written, before minutes of work.

    Raises:
        UsageError: its folder does not exist or may not be written.
    """
    if file is not None and (file.is_dir() or not os.access(file.parent, os.W_OK)):
        raise UsageError(f"--json {file} cannot be written", fix="name a file in a folder that exists")


def fresh_deployment(settings: Settings) -> dict[str, Any]:
    """Settle the settings of a deployment in which nothing has been learned yet.

    The demo has a data folder of its own, emptied at each start; if the settings name servers, topics and collections
    get a prefix of their own.

    Raises:
        UsageError: a demo runs in that folder now.
    """
    folder = settings.data_dir / "demo"
    if is_running(folder):
        raise UsageError(
            "a demo is running already", fix="stop it with Ctrl-C, or set MILLRACE_DATA_DIR for a second one"
        )
    shutil.rmtree(folder, ignore_errors=True)
    overrides: dict[str, Any] = {**COMPRESSED, "data_dir": folder}
    if settings.kafka_bootstrap or settings.qdrant_url:
        overrides["topic_prefix"] = f"demo-{int(time.time())}-"
    return overrides


def _progress_printer(console: Console, began: float) -> Callable[[str, str, str], None]:
    def show(name: str, state: str, detail: str) -> None:
        if state in ("ready", "external", "failed", "backing_off"):
            console.print(f"{time.monotonic() - began:6.1f} s  {name} {state} {detail}".rstrip(), markup=False)

    return show


def _serve_until_stopped(console: Console) -> None:
    console.print("\nserving until Ctrl-C", style="bold")
    with stopping_on_signals():
        while True:
            time.sleep(3600)
