"""What an external tool prints: read whatever comes, keep little, look for ``Error``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from entourage.settings.textfile import printable

LONGEST: Final = 500
"""Characters of a line that are shown."""
AT_ONCE: Final = 100
"""Lines that are passed on at once …"""
A_SECOND: Final = 20
"""… and for each second that goes by; of the rest only the number is told."""

_KEPT = 2048  # bytes, for the last words
_MARK = b"Error"  # xend: re.search('Error', line), on stdout


class Output:
    """The output of one call.

    Args:
        on_line: Is told a line, harmless to a terminal; None where nobody wants to know.
        on_error: Called once, when a line of stdout has ``Error`` in it; None: it may have.

    Attributes:
        error: That line; empty where there was none, or it may.
    """

    def __init__(
        self, on_line: Callable[[str], None] | None, on_error: Callable[[], None] | None
    ) -> None:
        self.error = ""
        self._on_line = on_line
        self._on_error = on_error
        self._pending = {True: b"", False: b""}
        self._tail = b""
        self._allowed = float(AT_ONCE)
        self._at = time.monotonic()
        self._left_out = 0

    def feed(self, data: bytes, *, stdout: bool) -> None:
        """Take what was read; costs next to nothing a line once a flood has used up its share."""
        self._tail = (self._tail + data[-_KEPT:])[-_KEPT:]
        data = self._pending[stdout] + data
        end = data.rfind(b"\n") + 1
        if not end and len(data) > LONGEST * 4:
            # A line without end is cut, but not within a mark that it may hold.
            end = len(data) - len(_MARK)
            if (last := data.rfind(_MARK)) > end - len(_MARK):
                end = last
        self._pending[stdout] = data[end:]
        self._take(data[:end], stdout=stdout)

    def finish(self) -> None:
        """The tool is done: take what has no newline behind it, and tell what was left out."""
        for stdout, rest in self._pending.items():
            self._take(rest, stdout=stdout)
        if self._left_out and self._on_line:
            self._on_line(f"… and {self._left_out} more lines")
        self._pending = {True: b"", False: b""}
        self._left_out = 0

    def last_words(self) -> str:
        """The end of what was printed, on one line; empty where nothing was."""
        lines = [_text(line) for line in self._tail.split(b"\n")]
        text = " / ".join([line for line in lines if line][-3:])
        return text if len(text) <= LONGEST else f"…{text[-LONGEST:]}"

    def _take(self, data: bytes, *, stdout: bool) -> None:
        if not data:
            return
        on_error = None if self.error or not stdout else self._on_error
        if on_error is not None and (at := data.find(_MARK)) >= 0:
            start, end = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at)
            start = max(start, at - LONGEST // 2)  # some of what is before it, and all of it
            self.error = _text(data[start : end if end >= 0 else len(data)])
            on_error()
        if self._on_line is None:
            return
        now = time.monotonic()
        self._allowed = min(self._allowed + (now - self._at) * A_SECOND, AT_ONCE)
        self._at = now
        *lines, rest = data.split(b"\n", int(self._allowed))
        if rest and int(self._allowed) > len(lines):
            lines, rest = [*lines, rest], b""
        self._left_out += rest.count(b"\n") + (not rest.endswith(b"\n") and bool(rest))
        for line in lines:
            self._allowed -= 1
            self._on_line(_text(line))


def _text(line: bytes) -> str:
    """A line for people: decoded, harmless, of bounded length."""
    text = line[: LONGEST * 4].decode("utf-8", "replace").replace("\t", " ").strip()
    text = printable(text[: LONGEST + 1])
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
