"""A domain with devices of the host leaves, comes back, arrives, and is found after a crash.

Controllers, both halves of Xen's backend and the journal are real; xl is a stand-in
(``xen_stand_in``), and so are xenstore and what libxl says of the domain.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from entourage import takeup
from entourage.conductor import Conductor, source_controllers
from entourage.devices.base import Controller, Options, There
from entourage.devices.pciif import PciController
from entourage.devices.tool import Tooled
from entourage.devices.usbif import UsbController
from entourage.domain import Domain, Pci, Usb
from entourage.errors import DeviceError, EntourageError
from entourage.handover import Target
from entourage.hypervisors.base import Machine, Verb
from entourage.hypervisors.xen import incoming as xen_incoming
from entourage.hypervisors.xen import wayback
from entourage.hypervisors.xen.incoming import XenIncoming
from entourage.hypervisors.xen.libxl import Life
from entourage.hypervisors.xen.machine import XenMachine
from entourage.hypervisors.xen.xenstore import XenStore
from entourage.journal import Decision, Journal
from entourage.passage import Passage
from entourage.protocol import Event, Flush, Guest, Heard, Message, Record, Role
from entourage.protocol import Verb as Word
from entourage.settings.model import PathSettings, Settings
from entourage.steps import Step
from entourage.takeup import taken_up_source
from entourage.target import TargetSide
from tests.unit.test_devices_harness import ALL_VERBS, TwoHosts
from tests.unit.xen_stand_in import Xl, stand_in

UUID = "3e5948d6-8285-4068-8236-a0e7729aaa7a"
HERE, THERE = "0000:41:00.0", "0000:05:00.1"
GPU = Pci(id="pci0", host=HERE, options="permissive=1")
KEY = Usb(id="usb0", vendor=0x1050, product=0x0407, place="1-1.4", port="0:1")
MAPPED = Options(pci={"pci0": THERE}, usb={"1-1.4": "1050:0407"})
RUNS = Life(paused=False, suspended=False, ended=False, crashed=False, cpu_time=5)
PATIENCE = 20.0


class Store:
    """Stands for xenstore, in which the domain is number 7."""

    async def domain_ids(self, uuid: str) -> list[int]:
        return [7] if uuid == UUID else []

    async def name(self, domid: int) -> str:
        return {7: "web1"}[domid]

    async def close(self) -> None:
        pass


class Scene(TwoHosts):
    """A domain with a GPU and a key, on its way from a to b."""

    def __init__(self, tmp_path: Path, xl: Xl) -> None:
        domain = Domain(name="web1", uuid=UUID, memory=1 << 28, usb=(KEY,), pci=(GPU,))
        super().__init__(domain, tmp_path)
        self.xl = xl
        self.options = MAPPED
        paths = PathSettings(
            run=str(tmp_path / "run"), log=str(tmp_path), state=str(tmp_path / "state")
        )
        self.settings = msgspec.structs.replace(Settings(), paths=paths)
        self.machine = cast("Any", self.xen_machine(domain))
        self.there.incoming = self.xen_incoming()
        self.controllers = source_controllers(domain, self.settings)

    def xen_machine(self, domain: Domain) -> XenMachine:
        config = {"c_info": {"type": "hvm"}}
        store = cast("XenStore", Store())
        return XenMachine(store, 7, domain, self.settings, config, was_running=True)

    def xen_incoming(self) -> XenIncoming:
        return XenIncoming(self.settings, self.there.domain, self.ledger)

    async def is_tested(self) -> None:
        """TEST, which refuses nothing."""
        for controller in self.controllers:
            assert await self.test(controller) == []
            self.there.domain = self.there.domain.with_device(controller.target_device)
        self.there.incoming = self.xen_incoming()

    def passage(self) -> Passage:
        """All that the source has open; only what goes into the journal is looked at."""
        return Passage(
            migration="m-1",
            source="a",
            target="b",
            hypervisor="xen",
            hypervisor_there="xen",
            settings=self.settings,
            options=self.options,
            tool=None,
            machine=cast("Machine", self.machine),
            journal=cast("Any", None),
            lock=cast("Any", None),
            link=cast("Any", None),
            welcome=cast("Any", None),
            clock=cast("Any", None),
            emit=self.events.append,
        )


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    xl = stand_in(tmp_path, monkeypatch)
    xl.has(pci=[HERE], usb={"0:1": (1, 6)}, assignable=[THERE])
    xl.plugged("1-1.4", 6)

    async def opened() -> Store:
        return Store()

    def life(domid: int) -> Life:
        return {7: RUNS}[domid]

    monkeypatch.setattr(xen_incoming.XenStore, "open", opened)
    for module in (xen_incoming, wayback):
        monkeypatch.setattr(module, "life", life)
    return Scene(tmp_path, xl)


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
    monkeypatch.setattr(wayback, "life", dict[int, Life]().get)
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
async def test_a_hypervisor_without_the_verb_refuses_the_map(scene: Scene, lacks: str) -> None:
    if lacks == "source":
        fake = SimpleNamespace(domain=scene.machine.domain, verbs=ALL_VERBS - {Verb.UNPLUG})
        scene.machine = cast("Any", fake)
    else:
        scene.there.incoming = cast("Any", SimpleNamespace(verbs=ALL_VERBS - {Verb.UNPLUG}))
    for controller in scene.controllers:
        (refusal,) = await scene.test(controller)
        assert refusal.no_way
        if lacks == "source":
            assert f"cannot do what --{controller.device_class} " in refusal.reason
            assert controller.target_device == controller.device


async def test_a_verb_that_is_only_listed_is_not_believed(scene: Scene) -> None:
    fake = SimpleNamespace(domain=scene.machine.domain, verbs=ALL_VERBS)
    scene.machine = cast("Any", fake)
    (refusal,) = await scene.test(scene.controllers[1])
    assert refusal.no_way


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
    way = scene.passage()
    other = Controller(GPU)  # of a class that undoes nothing
    memos = way.details(Step.TEST, [*scene.controllers, other])["memos"]
    assert memos == {"usb/usb0": {"mapped": True}, "pci/pci0": {"mapped": True}}
    scene.options = Options()
    unmapped = source_controllers(scene.machine.domain, scene.settings)
    assert not any(way.details(Step.TEST, unmapped)["memos"].values())


def test_only_who_left_a_memo_recovers_from_a_crash_within_prepare() -> None:
    conductor = Conductor(
        [UsbController(KEY), PciController(GPU)],
        cast("Any", None),
        Settings().migration,
        lambda _: None,
        lambda: 0.0,
    )
    conductor.take_up(Step.TEST, {"usb/usb0": {}, "pci/pci0": {"mapped": True}})
    assert conductor._began == {"pci/pci0"}  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("step", [Step.TEST, Step.PREPARE])
def test_recover_gives_them_back_after_a_crash(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step
) -> None:
    """Within PREPARE, or after it, the command was killed; both devices were out."""

    async def leave() -> dict[str, Any]:
        await scene.is_tested()
        for controller in scene.controllers:
            await scene.connect(controller)
        assert scene.xl.did() == DETACHED
        return scene.passage().details(step, scene.controllers)

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
        async def taken_up(self, domain: Domain) -> XenMachine:
            # `xl list -l` has them no more: all that is known of them is in the journal.
            return scene.xen_machine(domain)

    def opened(_settings: Settings, name: str) -> Hypervisor:
        assert name == "xen"
        return Hypervisor()

    monkeypatch.setattr(takeup, "open_hypervisor", opened)

    async def recover(journal: Journal) -> list[str]:
        async with taken_up_source(journal, scene.settings, decision, send=lambda _: None) as side:
            assert scene.xl.did() == []  # nothing before it is decided
            await side.take(Heard(Message(Word.NEVER, "m-1")))
            assert side.state.record is Record.BACK
            return side.problems

    with Journal.open(tmp_path / "journal.db") as journal:
        journal.flush(decision, Flush(None, Record.ARMED))
        assert asyncio.run(recover(journal)) == []
        assert set(scene.xl.did()) == GIVEN_BACK
        settled = journal.decision("m-1", Role.SOURCE)
        assert settled is not None
        assert settled.settled


# On arrival


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
            await side.take(Event.RESTARTED)

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


RAN = Message(Word.RAN, "m-1")
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


def test_one_that_is_slow_on_arrival_does_not_keep_the_source_waiting(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_incoming, "_PLUGS_WITHIN", 0.5)
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
        await asyncio.wait(incoming._plugging, timeout=PATIENCE)

    asyncio.run(go())
    assert scene.xl.did() == PLUGGED
    assert ["within 0.5 s" in said for said in told] == [True, True]
    assert "`xl usb-list web1` shows" in told[0]
    assert "`xl pci-list web1` shows" in told[1]
