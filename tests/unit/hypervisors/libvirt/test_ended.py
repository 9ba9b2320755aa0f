"""A guest of libvirt's that has ended by itself, where its libvirtd told nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from entourage.domain import Domain
from entourage.errors import GoneError, HypervisorError
from entourage.hypervisors.libvirt.constants import State
from entourage.hypervisors.libvirt.handle import Handle
from entourage.hypervisors.libvirt.machine import LibvirtMachine

DOMAIN = Domain(name="web1", uuid="5b6e6d0e-0000-4000-8000-000000000001", memory=1 << 28)


class Off:
    """A fake of ``virDomain``, off."""

    def __init__(self, reason: int) -> None:
        self._state = [State.SHUT_OFF, reason]

    def state(self, _flags: int) -> list[int]:
        return self._state


class LostFeed:
    """A fake of a feed whose libvirtd went away before it could tell."""

    async def until(self, _check: Any) -> Any:
        raise HypervisorError("libvirtd has gone")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (Off(1), "guest-shutdown"),
        (Off(3), "it crashed"),
        (Off(0), "libvirt does not know why"),  # after it was started again
        (None, "libvirt does not know why"),  # transient
    ],
)
async def test_it_is_seen_where_it_was_to_run_again(
    tmp_path: Path, raw: Off | None, why: str
) -> None:
    connection: Any = None
    handle = Handle(connection, raw, DOMAIN, was_running=True, transient=raw is None)
    ended: Any = LibvirtMachine(handle, tmp_path / "log")
    ended._job.feed = LostFeed()
    with pytest.raises(GoneError, match="the machine of web1 is gone"):
        await handle.run_again()
    assert await ended.died() == f"its machine has ended ({why})"
