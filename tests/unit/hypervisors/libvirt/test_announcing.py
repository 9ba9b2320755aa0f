"""Telling the network where a guest is that is back, or has ended meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from entourage.domain import Domain, Net
from entourage.hypervisors.libvirt import handle
from entourage.hypervisors.libvirt.announcing import SourceAnnouncing
from entourage.hypervisors.libvirt.connection import RefusedError
from entourage.hypervisors.libvirt.constants import State
from entourage.hypervisors.libvirt.handle import Handle

NETS = [Net(id="net0", bridge="br0", mac="52:54:00:00:00:01")]


class FakeDomain:
    """A fake of ``virDomain``."""

    def __init__(self, state: State) -> None:
        self._state = state

    def state(self, _flags: int) -> tuple[int, int]:
        return self._state, 0


def announcing(raw: Any) -> SourceAnnouncing:
    connection: Any = None
    domain = Domain(name="web1", memory=1 << 28)
    return SourceAnnouncing(Handle(connection, raw, domain, was_running=True, transient=False))


async def refuses(_raw: Any, command: str, **_arguments: Any) -> None:
    raise RefusedError(f"libvirt: {command}: no", 55)


@pytest.mark.parametrize("state", [State.SHUT_OFF, State.CRASHED])
async def test_a_guest_that_has_ended_is_nowhere(
    monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    monkeypatch.setattr(handle, "tell_qemu", refuses)
    await announcing(FakeDomain(state)).announce(NETS)
    await announcing(None).announce(NETS)


async def test_of_one_that_is_there_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle, "tell_qemu", refuses)
    with pytest.raises(RefusedError, match="announce-self"):
        await announcing(FakeDomain(State.RUNNING)).announce(NETS)
