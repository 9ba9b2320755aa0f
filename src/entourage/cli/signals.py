"""Ctrl-C and its like while a migration is under way."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Generator
from typing import Final

_WHY: Final = {
    signal.SIGINT: "interrupted with Ctrl-C",
    signal.SIGTERM: "asked to end (SIGTERM)",
    signal.SIGHUP: "the terminal is gone (SIGHUP)",
}


@contextlib.contextmanager
def signals_to(interrupt: Callable[[str], bool], say: Callable[[str], None]) -> Generator[None]:
    """Take signals for the length of a migration; none of them ever tears it.

    The first one before the hand-over makes it go back, any after that is only answered. Ctrl-Z is
    answered too: a process that sleeps between the guest's stop and its resume would hold the
    guest. What the shell wants ignored (``nohup``, ``&``) stays ignored.

    Args:
        interrupt: ``Migration.interrupt``.
        say: Shows a line.
    """
    loop = asyncio.get_running_loop()
    going_back = False

    def on_end(number: signal.Signals) -> None:
        nonlocal going_back
        if going_back:
            say("entourage: still going back; this takes as long as it takes")
        elif interrupt(_WHY[number]):
            going_back = True
            say(f"entourage: {_WHY[number]}: going back")
        else:
            say("entourage: handed over, completing")

    handlers: dict[signal.Signals, Callable[[], None]] = {
        number: lambda number=number: on_end(number) for number in _WHY
    }
    handlers[signal.SIGTSTP] = lambda: say("entourage: not while a domain is on its way")
    taken = [number for number in handlers if signal.getsignal(number) is not signal.SIG_IGN]
    for number in taken:
        loop.add_signal_handler(number, handlers[number])
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
