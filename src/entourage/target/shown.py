"""What ``entourage status`` on the target shows of a domain that arrives: written into its lock."""

from __future__ import annotations

from entourage import messages
from entourage.journal.lock import DomainLock
from entourage.settings.textfile import printable


def arriving(hello: messages.Hello, name: str) -> str:
    """What is done here, as the lock is taken.

    Args:
        hello: Who sends it; an older Entourage does not say how far it is.
        name: The domain's.
    """
    words = f"{hello.source} migrates {name} to this host"
    if (hello.agreed or 0) >= messages.TOLD_PROGRESS:
        return words
    return f"{words}; `entourage status` on {hello.source} shows how far it is"


class Shown:
    """What is shown, from when the migration is open.

    Args:
        lock: The domain's.
        hello: Who sends it.
        name: The domain's.
    """

    def __init__(self, lock: DomainLock, hello: messages.Hello, name: str) -> None:
        self._lock = lock
        self._hello = hello
        self._arriving = arriving(hello, name)

    def progress(self, doing: str) -> None:
        """What the source says of how far it is."""
        self._lock.note(f"{self._arriving}: {printable(doing)}")

    def runs(self) -> None:
        """The guest runs here."""
        self._lock.note(f"runs it; waits for {self._hello.source} to let go of it")
