"""The swtpm processes of a domain of libvirt's on this host: do they still live?

libvirt does not say, and QEMU notices only when the guest next uses its TPM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from pathlib import Path

_PROGRAM = "swtpm"


class Emulators:
    """Those whose state lies in a directory. Blocks for some milliseconds when it is made."""

    def __init__(self, states: Path) -> None:
        self._handles: list[int] = []
        wanted = os.fsencode(states) + b"/"
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
                if Path(os.fsdecode(words[0])).name != _PROGRAM:
                    continue
                if any(wanted in word for word in words):
                    self._handles.append(os.pidfd_open(int(entry.name)))

    async def ended(self) -> None:
        """Returns once one has ended; never where there is none."""
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()
        for handle in self._handles:
            loop.add_reader(handle, heard.set)
        try:
            await heard.wait()
        finally:
            for handle in self._handles:
                loop.remove_reader(handle)

    @property
    def one_has_ended(self) -> bool:
        """Whether any has; some microseconds."""
        return bool(self._handles and select.select(self._handles, (), (), 0)[0])
