"""A domain with devices of the host leaves, comes back, and is found after a crash.

See ``xen_scene``: xl is a stand-in.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from entourage.device_steps import DeviceSteps, source_controllers
from entourage.devices.base import Controller, Options
from entourage.devices.host.pci import PciController
from entourage.devices.host.usb import UsbController
from entourage.devices.tool.controller import Tooled
from entourage.domain import Domain
from entourage.errors import DeviceError
from entourage.handover.values import Flush, Heard, Message, MessageKind, Record, Role
from entourage.hypervisors.xen import handle
from entourage.hypervisors.xen.libxl import Life
from entourage.hypervisors.xen.machine import XenMachine
from entourage.journal.details import SourceDetails
from entourage.journal.journal import Decision, Journal
from entourage.settings.model import Settings
from entourage.source import reattach
from entourage.source.reattach import reattach_source
from entourage.steps import Step
from tests.unit.devices.test_harness import FakeIncoming, FakeMachine
from tests.unit.hypervisors.xen.scene import GPU, HERE, KEY, MAPPED, THERE, UUID, Scene, leaving


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return leaving(tmp_path, monkeypatch)


DETACHED = ["usbdev-detach 7 0 1", f"pci-detach 7 {HERE}"]
GIVEN_BACK = {
    "usbdev-attach 7 type=hostdev hostbus=1 hostaddr=6 controller=0 port=1",
    f"pci-attach 7 {HERE},permissive=1",
}


async def test_they_are_taken_out_before_memory_is_copied_and_not_sooner(scene: Scene) -> None:
    await scene.is_tested()
    for controller in scene.controllers:
        await scene.prepare(controller)
    assert scene.xl.did() == []
    for controller in scene.controllers:
        await scene.connect(controller)
    assert scene.xl.did() == DETACHED


async def test_the_target_has_what_was_mapped(scene: Scene) -> None:
    await scene.is_tested()
    there = scene.there.domain
    assert [device.plug for device in (*there.usb, *there.pci)] == ["1050:0407", THERE]
    # Device by device the same domain: what the stream is rewritten by goes by their order.
    assert [d.label for d in there.devices] == [d.label for d in scene.machine.domain.devices]


async def test_a_failure_gives_them_back_with_all_that_xl_was_told_before(scene: Scene) -> None:
    await scene.is_tested()
    for controller in scene.controllers:
        await scene.connect(controller)
    scene.xl.did()
    for _ in range(2):
        for controller in scene.controllers:
            await controller.recover(scene.here(controller.recover_there), Step.PREPARE)
    assert set(scene.xl.did()) == GIVEN_BACK


async def test_a_failure_before_they_were_taken_out_touches_nothing(scene: Scene) -> None:
    await scene.is_tested()
    for controller in scene.controllers:
        await controller.recover(scene.here(controller.recover_there), Step.TEST)
    assert scene.xl.did() == []


async def test_one_that_cannot_be_given_back_says_what_to_type_and_where(scene: Scene) -> None:
    await scene.is_tested()
    gpu = scene.controllers[1]
    await scene.connect(gpu)
    scene.xl.has(fails=["pci-attach"])
    with pytest.raises(DeviceError) as caught:
        await gpu.recover(scene.here(gpu.recover_there), Step.PREPARE)
    assert str(caught.value).startswith("the guest runs without it: xl pci-attach failed")
    assert caught.value.remedy == f"on a: `xl pci-attach web1 {HERE},permissive=1`"


async def test_where_the_guest_is_gone_nobody_is_told_that_it_runs_without(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.is_tested()
    gpu = scene.controllers[1]
    await scene.connect(gpu)
    scene.xl.did()
    monkeypatch.setattr(handle, "life", dict[int, Life]().get)
    await gpu.recover(scene.here(gpu.recover_there), Step.PREPARE)
    assert scene.xl.did() == []


async def test_what_is_not_mapped_is_refused_and_the_option_named(scene: Scene) -> None:
    scene.options = Options()
    for controller, option in zip(scene.controllers, ("--usb usb0=", "--pci pci0="), strict=True):
        (refusal,) = await scene.test(controller)
        assert refusal.no_way
        assert option in refusal.remedy
        assert "[tool]" in refusal.remedy
    assert scene.xl.did() == []


async def test_what_the_target_lacks_is_refused_there(scene: Scene) -> None:
    scene.xl.has(assignable=[])
    (refusal,) = await scene.test(scene.controllers[1])
    assert (refusal.device, refusal.host, refusal.no_way) == ("pci/pci0", "b", False)
    assert "there is no PCI device" in refusal.reason


@pytest.mark.parametrize("lacks", ["source", "target"])
async def test_a_hypervisor_without_the_seam_refuses_the_map(scene: Scene, lacks: str) -> None:
    if lacks == "source":
        scene.machine = FakeMachine(scene.machine.domain)
    else:
        scene.there.incoming = cast("Any", FakeIncoming())
    for controller in scene.controllers:
        (refusal,) = await scene.test(controller)
        assert refusal.no_way
        if lacks == "source":
            assert f"cannot do what --{controller.device_class} " in refusal.reason
            assert controller.target_device == controller.device


async def test_a_tool_that_takes_their_place_leaves_them_alone(scene: Scene) -> None:
    scene.options = Options()
    tooled = Tooled(PciController(GPU), "/bin/true")
    assert await scene.test(tooled) == []
    assert not tooled.undoes_prepare
    scene.options = MAPPED
    assert await scene.test(tooled) == []
    assert tooled.undoes_prepare


# After a crash


def test_the_journal_knows_of_them_before_anything_is_taken_out(scene: Scene) -> None:
    asyncio.run(scene.is_tested())
    session = scene.session()
    other = Controller(GPU)  # of a class that undoes nothing
    memos = session.details(Step.TEST, [*scene.controllers, other]).memos
    assert memos == {"usb/usb0": {"mapped": True}, "pci/pci0": {"mapped": True}}
    scene.options = Options()
    unmapped = source_controllers(scene.machine.domain, scene.settings)
    assert not any(session.details(Step.TEST, unmapped).memos.values())


def test_only_who_left_a_memo_recovers_from_a_crash_within_prepare() -> None:
    device_steps = DeviceSteps(
        [UsbController(KEY), PciController(GPU)],
        cast("Any", None),
        Settings().migration,
        lambda _: None,
        lambda: 0.0,
    )
    device_steps.reattach(Step.TEST, {"usb/usb0": {}, "pci/pci0": {"mapped": True}})
    assert device_steps._began == {"pci/pci0"}  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("step", [Step.TEST, Step.PREPARE])
def test_recover_gives_them_back_after_a_crash(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    """Within PREPARE, or after it, the command was killed; both devices were out."""

    async def leave() -> SourceDetails:
        await scene.is_tested()
        for controller in scene.controllers:
            await scene.connect(controller)
        assert scene.xl.did() == DETACHED
        return scene.session().details(step, scene.controllers)

    decision = Decision(
        migration="m-1",
        role=Role.SOURCE,
        domain=UUID,
        name="web1",
        generation=1,
        record=Record.ARMED,
        peer_host="b",
        peer_journal="B",
        details=asyncio.run(leave()),
    )

    class Hypervisor:
        async def reattach_machine(self, domain: Domain) -> XenMachine:
            # `xl list -l` has them no more: all that is known of them is in the journal.
            return scene.xen_machine(domain)

    def opened(_settings: Settings, name: str) -> Hypervisor:
        assert name == "xen"
        return Hypervisor()

    monkeypatch.setattr(reattach, "open_hypervisor", opened)

    async def recover(journal: Journal) -> list[str]:
        async with reattach_source(journal, scene.settings, decision, send=lambda _: None) as side:
            assert scene.xl.did() == []  # nothing before it is decided
            await side.take(Heard(Message(MessageKind.NEVER, "m-1")))
            assert side.state.record is Record.BACK
            return side.problems

    with Journal.open(tmp_path / "journal.db") as journal:
        journal.flush(decision, Flush(None, Record.ARMED))
        assert asyncio.run(recover(journal)) == []
        assert set(scene.xl.did()) == GIVEN_BACK
        settled = journal.decision("m-1", Role.SOURCE)
        assert settled is not None
        assert settled.settled
