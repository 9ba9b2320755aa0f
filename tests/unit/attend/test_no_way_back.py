"""A switchover whose target may not fail to load, as Proxmox VE's: GO comes before QEMU's Save."""

from __future__ import annotations

import asyncio

import pytest

from entourage.hypervisors.attended.switchover import TargetSwitchover, state_of


async def test_without_a_way_back_go_waits_until_qemu_has_its_object() -> None:
    """A target that cannot load the stream would take the guest with it."""
    switchover = TargetSwitchover("00ff", way_back=False)
    loaded = asyncio.create_task(switchover.loaded())
    switchover.listening.set()
    done, _ = await asyncio.wait({loaded}, timeout=0.05)
    assert not done
    switchover.joined.set()
    await asyncio.wait_for(loaded, 5)


@pytest.mark.parametrize(("granted", "loads"), [(True, False), (True, True), (False, False)])
async def test_a_guest_is_in_the_air_between_go_and_load(*, granted: bool, loads: bool) -> None:
    """Whoever answers its QEMU then may not go away."""
    switchover = TargetSwitchover("00ff", way_back=False)
    assert not switchover.in_the_air
    if granted:
        switchover.let_run()
    else:
        switchover.refuse("not now")
    if loads:
        await switchover.load(state_of("00ff"))
    assert switchover.in_the_air == (granted and not loads)
