"""A switchover whose target may not fail to load, as Proxmox VE's: GO comes before QEMU's Save."""

from __future__ import annotations

import asyncio

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.attended.switchover import (
    SourceSwitchover,
    TargetSwitchover,
    state_of,
)
from tests.unit.eventually import idle


async def test_without_a_way_back_go_waits_until_qemu_has_its_object() -> None:
    """A target that cannot load the stream would take the guest with it."""
    switchover = TargetSwitchover("00ff", way_back=False)
    loaded = asyncio.create_task(switchover.loaded())
    switchover.listening.set()
    await idle()
    assert not loaded.done()
    switchover.joined.set()
    await asyncio.wait_for(loaded, 5)


@pytest.mark.parametrize("way_back", [False, True])
async def test_the_source_sends_the_rest_only_after_go(*, way_back: bool) -> None:
    """Where there is a way back, beside what its devices do."""
    switchover = SourceSwitchover("00ff", way_back=way_back)
    switchover.ready()
    expecting = asyncio.create_task(switchover.expect())
    await idle()
    assert expecting.done() is way_back
    saving = asyncio.create_task(switchover.save())
    assert await switchover.saved()
    switchover.go_on()
    await idle()
    assert saving.done() is way_back
    switchover.go()
    assert await saving == state_of("00ff")
    await expecting


async def test_what_is_refused_fails_before_anything_is_sent() -> None:
    """A Save that is refused would only have the target fail to load."""
    switchover = SourceSwitchover("00ff", way_back=False)
    switchover.ready()
    expecting = asyncio.create_task(switchover.expect())
    await switchover.saved()
    assert switchover.stands_still
    switchover.refuse("not now")
    with pytest.raises(HypervisorError, match="not now"):
        await expecting


@pytest.mark.parametrize(("granted", "loads"), [(True, False), (True, True), (False, False)])
async def test_a_guest_is_in_the_air_between_go_and_load(*, granted: bool, loads: bool) -> None:
    """Whoever answers its QEMU then may not go away."""
    told: list[bool] = []
    switchover = TargetSwitchover("00ff", way_back=False, on_go=lambda: told.append(True))
    assert not switchover.in_the_air
    if granted:
        switchover.let_run()
        switchover.refuse("too late")
    else:
        switchover.refuse("not now")
        switchover.let_run()
    if loads:
        await switchover.load(state_of("00ff"))
    assert switchover.in_the_air == (granted and not loads)
    assert told == [True] * granted
