"""Threads in virtual time, one of which runs at a time: for code that is written to block.

Whoever waits gives its turn to whoever is to wake first. Which one that is depends on how long each waits, and so on
the seed alone. A process can be killed or held up wherever one of its threads waits.
"""

import threading
from collections.abc import Callable


class Killed(BaseException):
    """The process ends here, as by SIGKILL: nothing that it would still do reaches anybody."""


class Turn:
    """A thread that waits for its turn.

    Args:
        process: whose thread it is; None for the world around.
        wake_s: when it goes on.
    """

    def __init__(self, process: object, wake_s: float) -> None:
        self.process = process
        self.wake_s = wake_s
        self.is_idle = False
        """Whether it only waits for something to happen."""
        self.is_over = False
        """Whether it ends as soon as it has its turn."""
        self.go = threading.Semaphore(0)


class Turns:
    """Gives turns, in the order of virtual time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.turns: list[Turn] = []
        self.current: Turn | None = None
        self._done = threading.Event()

    def start(self, body: Callable[[], None], *, process: object = None, after_s: float = 0.0) -> None:
        """Let a thread begin after a while."""
        turn = Turn(process, self.now_s + after_s)
        self.turns.append(turn)
        threading.Thread(target=self._run, args=(turn, body), daemon=True).start()

    def run(self) -> None:
        """Give turns until no thread is left."""
        self._next()
        self._done.wait()

    def wait(self, seconds: float, *, is_idle: bool = False) -> None:
        """Let others run until so much time has passed for the thread that runs.

        Raises:
            Killed: its process was killed meanwhile.
        """
        turn = self.current
        assert turn is not None
        turn.wake_s, turn.is_idle = self.now_s + seconds, is_idle
        if self._earliest() is not turn:
            self._next()
            turn.go.acquire()
        self._take(turn)

    def of(self, process: object) -> list[Turn]:
        """Return the threads of a process."""
        return [turn for turn in self.turns if turn.process is process]

    def kill(self, process: object) -> None:
        """Let the threads of a process end where they wait."""
        for turn in self.of(process):
            turn.is_over, turn.wake_s = True, self.now_s

    def _earliest(self) -> Turn:
        """Return who is to wake first."""
        return min(self.turns, key=lambda turn: turn.wake_s)

    def _next(self) -> None:
        """Give the turn on."""
        if self.turns:
            self._earliest().go.release()
        else:
            self.current = None
            self._done.set()

    def _take(self, turn: Turn) -> None:
        """Go on, or end if killed meanwhile."""
        self.now_s, self.current, turn.is_idle = max(self.now_s, turn.wake_s), turn, False
        if turn.is_over:
            raise Killed

    def _run(self, turn: Turn, body: Callable[[], None]) -> None:
        """Run a thread from its first turn to its end."""
        turn.go.acquire()
        try:
            self._take(turn)
            body()
        except Killed:
            pass
        finally:
            self.turns.remove(turn)
            self._next()
