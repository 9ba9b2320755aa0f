"""TEST asks the machine that runs, not the record of its start; and its remedies are true."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from entourage.domain import Block, Domain
from entourage.errors import HypervisorError
from entourage.hypervisors.qemu.machine import QemuMachine
from entourage.hypervisors.qemu.paths import places
from entourage.hypervisors.qemu.qmp import Monitor
from entourage.steps import Refusal
from tests.e2e.qemu.hosts import SIZE, Host, Hosts, a_domain, make_disk, run


@dataclass
class Guest:
    """A domain that runs, and a monitor of its user's."""

    host: Host
    domain: Domain
    user: Monitor
    machine: QemuMachine

    async def refusals(self) -> dict[str, Refusal]:
        return {refusal.device: refusal for refusal in await self.machine.blockers()}


@pytest.fixture
async def guest(hosts: Hosts) -> AsyncGenerator[Guest]:
    domain = a_domain(hosts.a)
    make_disk(hosts.a.disk("cd"), boot=False)
    cd = Block(id="cd", path=str(hosts.a.disk("cd")), model="ide-cd")
    domain = await hosts.start(msgspec.structs.replace(domain, block=(*domain.block, cd)))
    where = places(hosts.a.settings, str(domain.uuid), domain.name)
    user = await Monitor.connect(where.info)
    machine = await hosts.a.hypervisor.machine(domain.name)
    assert isinstance(machine, QemuMachine)
    started = Guest(hosts.a, domain, user, machine)
    assert await started.refusals() == {}
    yield started
    await user.close()
    await started.machine.close()


Change = Callable[[Guest], Awaitable[object]]


def command(name: str, **arguments: Any) -> Change:
    arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
    return lambda guest: guest.user.execute(name, arguments)


async def snapshot(guest: Guest) -> None:
    overlay = str(guest.host.root / "overlay.qcow2")
    arguments = {"node-name": "n0-disk0", "snapshot-file": overlay, "snapshot-node-name": "over"}
    await guest.user.execute("blockdev-snapshot-sync", arguments)


async def commit(guest: Guest) -> None:
    """As the remedy says: the overlay's writes go into the disk, which is the guest's again."""
    await guest.user.execute("block-commit", {"job-id": "down", "device": "over"})
    await guest.user.until(lambda known: known.job("down").ready or None)
    assert "down" in (await guest.refusals())["domain"].reason
    await guest.user.execute("block-job-complete", {"device": "down"})
    await guest.user.until(lambda known: known.job("down").gone or None)


async def another_medium(guest: Guest) -> None:
    other = guest.host.disk("other")
    make_disk(other, boot=False)
    arguments = {"id": "block-cd", "filename": str(other), "format": "raw", "force": True}
    await guest.user.execute("blockdev-change-medium", arguments)


async def first_medium(guest: Guest) -> None:
    arguments = {"id": "block-cd", "filename": str(guest.host.disk("cd")), "format": "raw"}
    await guest.user.execute("blockdev-change-medium", arguments)


async def eject(guest: Guest) -> None:
    await guest.user.execute("blockdev-open-tray", {"id": "block-cd", "force": True})
    await guest.user.execute("blockdev-remove-medium", {"id": "block-cd"})


async def insert(guest: Guest) -> None:
    await guest.user.execute("blockdev-insert-medium", {"id": "block-cd", "node-name": "n1-cd"})
    await guest.user.execute("blockdev-close-tray", {"id": "block-cd"})


def throttle(bytes_a_second: int) -> Change:
    limits = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    device = {"id": "/machine/peripheral/block-disk0/virtio-backend"}
    return lambda guest: guest.user.execute(
        "block_set_io_throttle", {**device, **limits, "bps": bytes_a_second}
    )


@pytest.mark.parametrize(
    ("change", "device", "says", "undo"),
    [
        pytest.param(snapshot, "block/disk0", "overlay.qcow2", commit, id="snapshot"),
        pytest.param(another_medium, "block/cd", "other.img", first_medium, id="medium"),
        pytest.param(eject, "block/cd", "taken out", insert, id="ejected"),
        pytest.param(throttle(1 << 30), "block/disk0", "limited", throttle(0), id="throttled"),
        pytest.param(
            command("device_add", driver="usb-kbd", id="mine", bus="usb.0", port="7"),
            *("domain", "mine (usb-kbd)"),
            command("device_del", id="mine"),
            id="plugged",
        ),
        pytest.param(
            command("device_del", id="usb-tablet"),
            *("usb/tablet", "unplugged"),
            command("device_add", driver="usb-tablet", id="usb-tablet", bus="usb.0", port="1"),
            id="unplugged",
        ),
    ],
)
async def test_what_was_changed_is_refused_until_it_is_undone(
    guest: Guest, change: Change, device: str, says: str, undo: Change
) -> None:
    await change(guest)
    refused = await guest.refusals()
    assert list(refused) == [device]
    assert says in refused[device].reason
    assert refused[device].remedy
    await undo(guest)
    assert await guest.refusals() == {}


async def test_what_was_plugged_in_without_an_id_is_told(guest: Guest) -> None:
    await guest.user.execute("device_add", {"driver": "usb-kbd", "bus": "usb.0", "port": "7"})
    assert "a usb-kbd without an id" in (await guest.refusals())["domain"].reason


async def test_a_resized_disk_is_as_large_there(hosts: Hosts, guest: Guest) -> None:
    """It is the image that is asked how large it is."""
    larger = SIZE + (1 << 20)
    await guest.user.execute("block_resize", {"node-name": "n0-disk0", "size": larger})
    assert await guest.refusals() == {}
    assert hosts.a.disk().stat().st_size == larger


async def test_a_machine_from_which_a_disk_was_taken_can_still_be_opened(guest: Guest) -> None:
    """A recovery must be able to."""
    await guest.machine.close()
    await eject(guest)
    await guest.user.execute("blockdev-del", {"node-name": "n1-cd"})
    machine = await guest.host.hypervisor.machine(guest.domain.name)
    guest.machine = machine  # type: ignore[assignment]
    assert list(await guest.refusals()) == ["block/cd"]


async def test_a_snapshot_over_a_shared_base_is_told_with_its_file(guest: Guest) -> None:
    """Made beforehand, with names of its user's own."""
    overlay = guest.host.root / "mine.qcow2"
    await run("qemu-img", "create", "-q", "-f", "qcow2", str(overlay), str(SIZE))
    overlay.chmod(0o666)  # QEMU's user opens it
    file = {"driver": "file", "filename": str(overlay)}
    node = {"driver": "qcow2", "node-name": "top", "file": file, "backing": None}
    await guest.user.execute("blockdev-add", node)
    await guest.user.execute("blockdev-snapshot", {"node": "n0-disk0", "overlay": "top"})
    assert str(overlay) in (await guest.refusals())["block/disk0"].reason


async def test_a_machine_of_which_nothing_can_be_asked_is_no_machine(guest: Guest) -> None:
    await guest.user.execute("quit")
    with pytest.raises(HypervisorError):
        await guest.machine.blockers()
