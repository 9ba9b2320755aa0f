"""What the two ends of ``xl migrate`` say to each other (tools/xl/xl.h and xl_migrate.c, Xen 4.17).

::

    sender                         receiver (xl migrate-receive)
                              ◄──  BANNER
    header, config, stream    ──►
                              ◄──  READY    all is here; the domain is paused, NAME--incoming
    renames its copy
    GO                        ──►           from here on the sender never resumes unasked
                              ◄──  REPORT and one byte: 0, it runs here
    destroys its copy
                                   or else not 0, and GO: destroyed here, resume there

All but BANNER end with a NUL. The reads of a pipe may cut them anywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from entourage.errors import HypervisorError

NAME: Final = "xen"
"""The backend's."""
BANNER: Final = b"xl migration receiver ready, send binary domain data.\n"
READY: Final = b"domain received, ready to unpause\0"
GO: Final = b"domain is yours, you are cleared to unpause\0"
REPORT: Final = b"my copy unpause results are as follows\0"
RUNS: Final = REPORT + b"\0"
"""The report after which the sender destroys its copy."""
RUNS_NOT: Final = REPORT + b"\1" + GO
"""The report after which the sender takes its name back and resumes."""
AWAY: Final = "--migratedaway"
"""What the sender's copy is called from GO on."""
INCOMING: Final = "--incoming"
"""What the receiver's copy is called before it."""
STREAMS: Final = "streams"
"""The name of the socket at which the agent takes streams, in ``arrives_in``."""


def arrives_in(run: str, uuid: str) -> Path:
    """The directory of what only the arrival of a domain needs; ``run`` is the settings' own."""
    return Path(run, f"xen-{uuid}.incoming")


class Expect:
    """Finds one fixed message in bytes that arrive in pieces.

    Args:
        message: What is to come next, and nothing else.
    """

    def __init__(self, message: bytes) -> None:
        self._rest = message
        self._read = b""

    @property
    def complete(self) -> bool:
        """All of it has come."""
        return not self._rest

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes.

        Returns:
            What came after the message.

        Raises:
            HypervisorError: Something else came.
        """
        mine, after = data[: len(self._rest)], data[len(self._rest) :]
        self._read += mine
        if not self._rest.startswith(mine):
            raise HypervisorError(f"xl says what it never says there: {self._read[:80]!r}")
        self._rest = self._rest[len(mine) :]
        return after
