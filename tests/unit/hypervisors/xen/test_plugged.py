"""What stands for a domain's devices of the host is plugged in when it has arrived.

See ``xen_scene``: xl is a stand-in.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from entourage.devices.base import There
from entourage.devices.host.pci import PciController
from entourage.devices.host.usb import UsbController
from entourage.domain import Domain
from entourage.errors import DeviceError, EntourageError
from entourage.handover.rules import Target
from entourage.handover.values import Flush, Guest, Input, Message, MessageKind, Record, Role
from entourage.hosts.resources import Ledger
from entourage.hypervisors.xen import plugging
from entourage.hypervisors.xen.incoming import XenIncoming
from entourage.journal.details import TargetDetails
from entourage.journal.journal import Decision, Journal
from entourage.recovery import recover
from entourage.settings.model import Settings
from entourage.source import reattach
from entourage.target.role import TargetSide
from tests.unit.hypervisors.xen.scene import GPU, KEY, PATIENCE, THERE, UUID, Scene, leaving


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return leaving(tmp_path, monkeypatch)


def arriving(scene: Scene, journal: Journal, *, record: Record, told: list[Any]) -> TargetSide:
    """The target's side, once GO is on its disk."""
    there: There = scene.there
    return TargetSide(
        journal=journal,
        decision=Decision(
            migration="m-1",
            role=Role.TARGET,
            domain=UUID,
            name="web1",
            generation=1,
            record=record,
            peer_host="a",
            peer_journal="A",
        ),
        state=Target(migration="m-1", record=record, guest=Guest.RUNNING),
        there=there,
        controllers=[UsbController(KEY), PciController(GPU)],
        send=told.append,
        on_failure=told.append,
        on_resumed=lambda _: None,
    )


def arrive(scene: Scene, tmp_path: Path) -> list[Any]:
    """An agent that finds GO and the guest running goes on: what it told the source."""
    told: list[Any] = []

    async def go(journal: Journal) -> None:
        await scene.is_tested()
        side = arriving(scene, journal, record=Record.GO, told=told)
        scene.xl.has(pci=[], usb={})
        async with asyncio.timeout(PATIENCE):
            await side.take(Input.RESTARTED)

    with Journal.open(tmp_path / "journal.db") as journal:
        decision = Decision(
            migration="m-1",
            role=Role.TARGET,
            domain=UUID,
            name="web1",
            generation=1,
            record=Record.OPEN,
        )
        journal.flush(decision, Flush(None, Record.OPEN))
        journal.flush(decision, Flush(Record.OPEN, Record.GO))
        asyncio.run(go(journal))
        assert journal.record("m-1", Role.TARGET) is Record.RAN
    return told


RAN = Message(MessageKind.RAN, "m-1")
PLUGGED = [
    "usbdev-attach 7 type=hostdev hostbus=1 hostaddr=6 controller=0 port=1",
    f"pci-attach 7 {THERE},permissive=1",
]


def test_what_stands_for_them_is_plugged_in_on_arrival(scene: Scene, tmp_path: Path) -> None:
    assert arrive(scene, tmp_path) == [RAN]
    assert scene.xl.did() == PLUGGED


def test_one_that_fails_on_arrival_stops_neither_the_guest_nor_the_other(
    scene: Scene, tmp_path: Path
) -> None:
    scene.xl.has(fails=["usbdev-attach"])
    failed, ran = arrive(scene, tmp_path)
    assert ran == RAN
    assert isinstance(failed, EntourageError)
    assert failed.device == "usb/usb0"
    assert "on arrival: the guest runs without 1050:0407: xl usbdev-attach failed" in str(failed)
    assert "on b: `xl usbdev-attach web1 type=hostdev hostbus=1 hostaddr=6" in str(failed)
    assert scene.xl.did() == PLUGGED


def test_recover_on_the_target_plugs_in_and_tells_what_fails(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent was killed once the guest ran."""
    asyncio.run(scene.is_tested())
    scene.xl.has(pci=[], usb={}, fails=["usbdev-attach"])

    class Hypervisor:
        def incoming(self, domain: Domain, ledger: Ledger) -> XenIncoming:
            return XenIncoming(scene.settings, domain, ledger)

    def opened(_settings: Settings, name: str) -> Hypervisor:
        assert name == "xen"
        return Hypervisor()

    monkeypatch.setattr(reattach, "open_hypervisor", opened)
    decision = Decision(
        migration="m-1",
        role=Role.TARGET,
        domain=UUID,
        name="web1",
        generation=1,
        record=Record.OPEN,
        peer_host="a",
        details=TargetDetails(domain=scene.there.domain, hypervisor="xen"),
    )
    with Journal.open(Path(scene.settings.paths.state, "journal.db")) as journal:
        journal.flush(decision, Flush(None, Record.OPEN))
        journal.flush(decision, Flush(Record.OPEN, Record.GO))
    [done] = asyncio.run(recover(scene.settings))
    assert done.after == Record.RAN
    [problem] = done.problems
    assert problem.startswith("usb/usb0: on arrival: the guest runs without 1050:0407")
    assert "`xl usbdev-attach web1 " in problem
    assert scene.xl.did() == PLUGGED


def test_one_that_is_slow_on_arrival_does_not_keep_the_source_waiting(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugging, "_PLUGS_WITHIN", 0.5)
    scene.xl.has(slow=["usbdev-attach"])
    told: list[Any] = []

    async def go() -> None:
        await scene.is_tested()
        scene.xl.has(pci=[], usb={})
        for controller in (UsbController(KEY), PciController(GPU)):
            with pytest.raises(DeviceError) as caught:
                await controller.arrived(scene.there)
            told.append(str(caught.value))
        scene.xl.go_on()  # what has begun is let end
        incoming = cast("Any", scene.there.incoming)
        await asyncio.wait_for(incoming.plugging.ended(), PATIENCE)

    asyncio.run(go())
    assert scene.xl.did() == PLUGGED
    assert ["within 0.5 s" in said for said in told] == [True, True]
    assert "`xl usb-list web1` shows" in told[0]
    assert "`xl pci-list web1` shows" in told[1]
