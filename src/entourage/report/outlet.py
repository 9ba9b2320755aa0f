"""Writing to a terminal, a file or a pipe without ever waiting for it, and without ever failing.

A terminal that was stopped with Ctrl-S, a pager that nobody scrolls or a dead ssh session would
otherwise stop the event loop, and the migration with it. A thread does the writing. What cannot be
written (``| head`` has gone) is dropped: the migration goes on.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import queue
import select
import threading
from typing import IO, cast

_RETRY = (errno.EAGAIN, errno.EWOULDBLOCK)


class Outlet:
    """A text stream that never blocks its writer and never raises.

    Args:
        stream: Where the text goes. One without a file descriptor is written to directly; None is
            what Python has where the descriptor was closed from the beginning (``>&-``).
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.broken = stream is None
        self._stream = stream
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._put = 0
        self._written = 0
        try:
            self._fd = stream.fileno() if stream is not None else -1
        except (OSError, io.UnsupportedOperation, AttributeError):
            self._fd = -1

    @property
    def backlog(self) -> int:
        """How many writes have not come through yet."""
        return self._put - self._written

    @property
    def is_utf8(self) -> bool:
        """Whether signs beyond ASCII can be shown."""
        return self.encoding.lower().replace("-", "").startswith("utf")

    def as_file(self) -> IO[str]:
        """Itself, in the type that others expect of a file."""
        return cast("IO[str]", self)

    def isatty(self) -> bool:
        """Whether a person looks on."""
        return self._fd >= 0 and os.isatty(self._fd)

    def fileno(self) -> int:
        """The file descriptor; raises OSError where there is none."""
        if self._fd < 0:
            raise OSError("no file descriptor")
        return self._fd

    @property
    def in_foreground(self) -> bool:
        """False where the terminal belongs to another job of the shell just now."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True  # no job control here

    def write(self, text: str) -> int:
        """Write, some time soon and in order."""
        if self.broken or not text:
            return len(text)
        if self._fd < 0:
            self._write_to_stream(text)
            return len(text)
        if self._thread is None:
            if self._stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    self._stream.flush()  # what was printed before comes first
            self._thread = threading.Thread(target=self._work, name="outlet", daemon=True)
            self._thread.start()
        self._put += 1
        self._queue.put(text.encode(self.encoding, "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back anyway."""

    def close(self, timeout: float | None = None) -> None:
        """Wait until all is written (or the time is over). It can be written to again."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(timeout)

    def _write_to_stream(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            self._stream.flush()
        except (OSError, ValueError):
            self.broken = True

    def _work(self) -> None:
        while (data := self._queue.get()) is not None:
            if not self.broken:
                try:
                    _write_all(self._fd, data)
                except OSError:
                    self.broken = True
            self._written += 1


def _write_all(fd: int, data: bytes) -> None:
    """Write everything, also where somebody else made the descriptor non-blocking."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except OSError as error:
            if error.errno not in _RETRY:
                raise
            ready = select.poll()
            ready.register(fd, select.POLLOUT)
            ready.poll()
