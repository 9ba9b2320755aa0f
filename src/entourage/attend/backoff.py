"""How long to wait before something is tried again."""

from __future__ import annotations


class Backoff:
    """Pauses that double, for each of several things.

    Args:
        first: Seconds before the second attempt.
        longest: Seconds before any.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next: dict[str, float] = {}

    def pause(self, what: str = "") -> float:
        """Seconds to wait: it has failed, or failed again."""
        pause = self._next.get(what, self._first)
        self._next[what] = min(2 * pause, self._longest)
        return pause

    def reset(self, what: str = "") -> None:
        """It has not failed."""
        self._next.pop(what, None)
