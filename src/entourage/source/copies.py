"""How fast what is copied comes along, and how long it will take: for events and for ``status``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from entourage.events import CopyProgress, Listener
from entourage.settings.units import format_duration, format_rate

_WINDOW: Final = 10.0  # seconds that a rate is the mean of: an estimate that jumps is of no use
_LEAST: Final = 1.0  # seconds before there is one
_LONGEST: Final = 86400.0  # seconds; what is slower stands still
_SOON: Final = 10.0  # seconds; longer estimates are told in whole seconds


class Copies:
    """Fills in what is not known of a copy by itself, and notes how far all of them are.

    Args:
        emit: Takes the events.
        note: Takes what ``status`` shows.
    """

    def __init__(self, emit: Listener, note: Callable[[str], None]) -> None:
        self._emit = emit
        self._note = note
        self._samples: dict[str, deque[tuple[float, int]]] = {}
        self._last: dict[str, CopyProgress] = {}

    def seen(self, event: CopyProgress) -> None:
        """Take how far a copy is; its rate and estimate are filled in where they are missing."""
        gain = self._gain(event)
        event = msgspec.structs.replace(event, rate=event.rate or gain, eta=_eta(event, gain))
        self._last[event.what] = event
        self._emit(event)
        self._note(self._words())

    def _gain(self, event: CopyProgress) -> float:
        """Bytes a second by which less is left: of memory, without what the guest writes anew."""
        samples = self._samples.setdefault(event.what, deque())
        samples.append((event.at, event.done))
        while event.at - samples[0][0] > _WINDOW:
            samples.popleft()
        (began, first), (at, last) = samples[0], samples[-1]
        return max(last - first, 0) / (at - began) if at - began >= _LEAST else 0.0

    def _words(self) -> str:
        """``copying block/disk0, 41 %, 120 MiB/s, 35 s left``."""
        under_way = [one for one in self._last.values() if one.done < one.total]
        if "memory" in self._last:  # which comes once the disks are the same
            under_way = [self._last["memory"]]
        if not under_way:
            return "the disks are the same"
        done, total = sum(one.done for one in under_way), sum(one.total for one in under_way)
        words = [f"copying {', '.join(one.what for one in under_way)}"]
        words += [f"round {one.iteration}" for one in under_way if one.iteration > 1]
        words.append(f"{100 * done // total if total else 0} %")
        if rate := sum(one.rate for one in under_way):
            words.append(format_rate(rate))
        known = [one.eta for one in under_way if one.eta is not None]
        if known and len(known) == len(under_way):
            words.append(f"{format_duration(max(known))} left")
        return ", ".join(words)


def _eta(event: CopyProgress, gain: float) -> float | None:
    """Seconds that are left; None where nobody knows, as where it does not converge.

    Args:
        event: How far it is.
        gain: Bytes a second by which less is left.
    """
    left = event.total - event.done
    if left <= 0:
        return 0.0
    if gain <= 0:
        return None
    seconds = left / gain
    if seconds > _LONGEST:
        return None
    return float(round(seconds)) if seconds >= _SOON else round(seconds, 1)
