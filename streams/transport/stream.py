"""A stream that acknowledges an event only when its loop asks for the next one.

Stock Faust acknowledges in a `finally`: an exception, a cancellation or a `break` inside the loop's body marks the
event as done, and the next commit loses it. Here the event keeps one more reference, dropped only when the body came
to its end.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import faust
from typing_extensions import override


class BatchStream(faust.Stream):
    """The stream of chunks that an agent reads."""

    @override
    def __aiter__(self) -> AsyncIterator[Any]:
        progress = self._finished_only(super().__aiter__())
        self._active_agens.add(progress)
        return progress

    async def _finished_only(self, events: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """Yield each value and acknowledge its event once the next one is asked for."""
        async for value in events:
            event = self.current_event
            if event is not None:
                event.message.incref()
            yield value
            if event is not None:
                event.ack()
