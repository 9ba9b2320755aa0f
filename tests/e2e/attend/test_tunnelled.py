"""Shared disks: ``virsh migrate --p2p --tunnelled``, and virt-manager's calls, which copy none."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack

import pytest

from lab.guest import Disk
from lab.hosts import Lab
from lab.libvirtd import Libvirtd
from lab.observer import Observer
from tests.e2e.attend.world import DEVICES, Attend, AttendWorld, steps
from tests.e2e.shared import POOL, SHARED, pool, shared_storage

pytestmark = pytest.mark.matrix
ALL = ["1", "2", "3"]
NOT = ("--copy-storage-all",)
# One filesystem on both hosts, and no cluster's: libvirt cannot know that they do not both write.
TUNNELLED = ("--tunnelled", "--unsafe")
# As vmmDomain.migrate of virt-manager has them (virtManager/object/domain.py, 2026-03-27): live,
# persistent, undefined on the source, and unsafe where its user ticks that.
MANAGER = 1 | 8 | 16 | 512
MANAGER_TUNNELLED = MANAGER | 2 | 4  # peer to peer, tunnelled


@pytest.fixture(scope="module")
def module_world(attend_lab: Lab, daemons: dict[str, Attend]) -> Generator[AttendWorld]:
    del daemons
    with ExitStack() as stack:
        stack.enter_context(shared_storage(attend_lab))
        for name in ("a", "b"):
            stack.enter_context(pool(attend_lab[name]))
        seen = stack.enter_context(Observer.start(attend_lab))
        disks = [Disk(f"{SHARED}/web1.raw")]
        world = AttendWorld.begin(attend_lab, seen, disks=disks, tpm=False, extra=DEVICES)
        assert isinstance(world, AttendWorld)
        yield world
        Libvirtd(world.here).virsh("pool-refresh", POOL)
        world.end()


def test_there_and_back(world: AttendWorld) -> None:
    for _ in range(2):
        tool = world.tool()
        done = world.virsh(*TUNNELLED, p2p=True, without=NOT)
        assert done.returncode == 0, world.told(done)
        world.arrived()
        assert steps(tool) == {"dongle": ALL, "meter": ALL}
        world.settled()


@pytest.mark.parametrize("step", [2, 3])
def test_a_device_that_fails(world: AttendWorld, step: int) -> None:
    tool = world.tool(f'[ "$type:$step:$recover" != dongle:{step}:no ] || exit 1')
    done = world.virsh(*TUNNELLED, p2p=True, without=NOT)
    assert done.returncode != 0, world.told(done)
    world.settled()
    world.is_as_before()
    assert steps(tool)["dongle"] == [*ALL[:step], f"r{step - 1}"]


@pytest.mark.parametrize(
    ("call", "flags"),
    [("migrate3", MANAGER), ("migrateToURI3", MANAGER_TUNNELLED)],
    ids=["direct", "tunnelled"],
)
@pytest.mark.parametrize("fails", [False, True], ids=["moves", "goes-back"])
def test_virt_managers_calls(world: AttendWorld, call: str, flags: int, *, fails: bool) -> None:
    tool = world.tool('[ "$type:$step:$recover" != dongle:3:no ] || exit 1' if fails else "")
    done = world.by_api(call, flags)
    world.settled()
    assert (done.returncode != 0) == fails, world.told(done)
    if fails:
        world.is_as_before()
    else:
        world.arrived()
    assert steps(tool)["dongle"] == ([*ALL, "r2"] if fails else ALL)
