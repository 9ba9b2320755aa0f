"""The clock of a guest that was restored, and stood still meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt import guestclock
from tests.unit.hypervisors.libvirt.fakes import Failed

CHANNEL = (
    "<channel type='unix'><target type='virtio' name='{name}' state='{state}'/></channel>"
    "<channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>"
)
AGENT = CHANNEL.format(name="org.qemu.guest_agent.0", state="connected")
SILENT = CHANNEL.format(name="org.qemu.guest_agent.0", state="disconnected")


class Raw:
    """A domain whose guest agent does what ``sets`` does."""

    def __init__(self, channels: str, sets: Any = None) -> None:
        self.channels = channels
        self.set: list[dict[str, int]] = []
        self._sets = sets

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's
        return f"<domain><devices>{self.channels}</devices></domain>"

    def setTime(self, moment: dict[str, int], _flags: int) -> None:  # noqa: N802 - libvirt's
        self.set.append(moment)
        if self._sets:
            self._sets()


async def test_it_is_this_hosts() -> None:
    raw, before = Raw(AGENT), time.time()
    await guestclock.move_on(raw, "web1")
    [moment] = raw.set
    assert before - 1 <= moment["seconds"] + moment["nseconds"] / 1e9 <= time.time()


@pytest.mark.parametrize(
    "channels",
    [
        "",
        SILENT,
        CHANNEL.format(name="org.example.0", state="connected"),
    ],
)
async def test_without_an_agent_nothing_is_done(
    channels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guestclock, "_LISTENS_WITHIN", 0.02)
    raw = Raw(channels)
    await guestclock.move_on(raw, "web1")
    assert raw.set == []


async def test_an_agent_of_which_libvirt_hears_a_moment_later() -> None:
    """As of each guest that has just been restored."""

    class Late(Raw):
        def XMLDesc(self, flags: int) -> str:  # noqa: N802 - libvirt's
            now, self.channels = super().XMLDesc(flags), AGENT
            return now

    raw = Late(SILENT)
    await guestclock.move_on(raw, "web1")
    assert len(raw.set) == 1


async def test_an_agent_that_does_not_answer_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestclock, "_ANSWERS_WITHIN", 0.05)
    may_end = threading.Event()
    with pytest.raises(HypervisorError, match="not answered") as told:
        await guestclock.move_on(Raw(AGENT, may_end.wait), "web1")
    may_end.set()
    assert told.value.remedy == "virsh domtime web1 --now"


async def test_one_that_refuses_is_told_of() -> None:
    def refuse() -> None:
        raise Failed("hwclock: cannot access the hardware clock")

    with pytest.raises(HypervisorError, match="hwclock") as told:
        await guestclock.move_on(Raw(AGENT, refuse), "web1")
    assert told.value.remedy
