"""The blackout, from the guest's stop to its resume on either host: its spans and its budget.

QEMU and libvirt call it downtime.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator, Sequence

from entourage.clock import Clock
from entourage.errors import DeadlineError
from entourage.events import GuestResumed, GuestStopped, Listener, SpanDone


class Blackout:
    """One migration's blackout.

    Args:
        clock: The migration's.
        emit: Takes the events.
        budget: Seconds that it may take before everything goes back; None: as long as it takes.

    Attributes:
        seconds: How long it was, once it is over.
        limit: The budget, in seconds.
    """

    def __init__(self, clock: Clock, emit: Listener, budget: float | None) -> None:
        self.seconds: float | None = None
        self._clock = clock
        self._emit = emit
        self.limit = budget
        self._began: float | None = None
        self._named = 0.0  # up to here everything has a name

    def begin(self, stopped: int) -> None:
        """The guest stopped at this moment (ns of the monotonic clock)."""
        self._began = self._named = self._clock.at(stopped)
        self._emit(GuestStopped(at=self._began))

    def end(self, at: float, host: str) -> None:
        """The guest runs on ``host`` since ``at``; nothing is told of one that never stopped."""
        if self._began is not None and self.seconds is None:
            self.seconds = at - self._began
            self._emit(GuestResumed(at=at, host=host, blackout=self.seconds))

    @contextlib.contextmanager
    def span(self, name: str, host: str) -> Generator[None]:
        """Name the part of the blackout that the body takes."""
        start = self._clock.now()
        yield
        self.name(name, host, until=self._clock.now(), since=start)

    def name(self, name: str, host: str, *, until: float, since: float | None = None) -> None:
        """Name a part of the blackout that is over.

        Args:
            name: Of the stretch.
            host: Where it was.
            until: Its end, in seconds since the migration began.
            since: Its beginning; None: where the last stretch that has a name ended.
        """
        start = self._named if since is None else since
        self._named = max(self._named, until)
        self._emit(SpanDone(at=until, name=name, host=host, start=min(start, until)))

    @contextlib.asynccontextmanager
    async def budget(self, unfinished: Callable[[], Sequence[str]]) -> AsyncGenerator[None]:
        """Run the body within what is left of the blackout budget.

        Raises:
            DeadlineError: The body did not end within what is left of the budget; it names what
                ``unfinished`` says.
        """
        began = self._began if self._began is not None else self._clock.now()
        left = None if self.limit is None else began + self.limit - self._clock.now()
        try:
            async with asyncio.timeout(left):
                yield
        except TimeoutError as error:
            waiting = ", ".join(unfinished()) or "the last memory pages"
            raise DeadlineError(
                f"the blackout budget of {self.limit:g} s ran out while waiting for {waiting}",
                remedy="raise --max-blackout",
            ) from error
