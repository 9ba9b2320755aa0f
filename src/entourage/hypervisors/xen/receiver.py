"""What ``xl migrate-receive`` on the target has said so far. Sans-IO."""

from __future__ import annotations

import enum

from entourage.errors import HypervisorError
from entourage.hypervisors.xen.constants import BANNER, GO, READY, REPORT, Expect


class Said(enum.Enum):
    """The last thing that it has said."""

    NOTHING = enum.auto()
    BANNER = enum.auto()
    """It takes the stream."""
    READY = enum.auto()
    """All is here; it waits for GO."""
    RUNS = enum.auto()
    """The domain is let run."""
    REFUSED = enum.auto()
    """It could not be let run, and never ran; it is being destroyed."""
    DESTROYED = enum.auto()


_NEXT = {Said.NOTHING: BANNER, Said.BANNER: READY, Said.READY: REPORT, Said.REFUSED: GO}
_AFTER = {
    Said.NOTHING: Said.BANNER,
    Said.BANNER: Said.READY,
    Said.REFUSED: Said.DESTROYED,
}


class Receiver:
    """Reads what the receiver writes, however it is cut."""

    def __init__(self) -> None:
        self.said = Said.NOTHING
        self._expects: Expect | None = Expect(BANNER)

    def feed(self, data: bytes) -> list[Said]:
        """Take the next bytes.

        Returns:
            What it has said with them, in order.

        Raises:
            HypervisorError: They are nothing that it ever says there.
        """
        heard: list[Said] = []
        while data:
            data = self._take(data, heard)
        return heard

    def _take(self, data: bytes, heard: list[Said]) -> bytes:
        if self._expects is None:
            raise HypervisorError(f"xl's receiver says more than it ever does: {data[:80]!r}")
        if self._expects.complete:  # the report's last byte
            self._become(Said.REFUSED if data[0] else Said.RUNS, heard)
            return data[1:]
        data = self._expects.feed(data)
        if self._expects.complete and self.said is not Said.READY:
            self._become(_AFTER[self.said], heard)
        return data

    def _become(self, said: Said, heard: list[Said]) -> None:
        self.said = said
        heard.append(said)
        self._expects = Expect(_NEXT[said]) if said in _NEXT else None
