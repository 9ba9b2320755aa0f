"""A domain of xl's with a GPU and a key of its host, on its way to another one.

Controllers, both halves of Xen's backend and the journal are real; xl is a stand-in
(``xen_stand_in``), and so are xenstore and what libxl says of the domain.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from entourage.device_steps import source_controllers
from entourage.devices.base import Options
from entourage.domain import Domain, Pci, Usb
from entourage.hypervisors.base import Machine
from entourage.hypervisors.xen import handle
from entourage.hypervisors.xen import incoming as xen_incoming
from entourage.hypervisors.xen.handle import Handle
from entourage.hypervisors.xen.incoming import XenIncoming
from entourage.hypervisors.xen.libxl import Life
from entourage.hypervisors.xen.machine import XenMachine
from entourage.hypervisors.xen.xenstore import XenStore
from entourage.settings.model import PathSettings, Settings
from entourage.source.session import Session
from tests.unit.devices.test_harness import TwoHosts
from tests.unit.hypervisors.xen.stand_in import Xl, stand_in

UUID = "3e5948d6-8285-4068-8236-a0e7729aaa7a"
HERE, THERE = "0000:41:00.0", "0000:05:00.1"
GPU = Pci(id="pci0", host=HERE, options="permissive=1")
KEY = Usb(id="usb0", vendor=0x1050, product=0x0407, place="1-1.4", port="0:1")
MAPPED = Options(pci={"pci0": THERE}, usb={"1-1.4": "1050:0407"})
RUNS = Life(paused=False, cpu_time=5)
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
        log = Path(self.settings.paths.log, "web1.log")
        return XenMachine(Handle(store, 7, domain, config, log), self.settings)

    def xen_incoming(self) -> XenIncoming:
        return XenIncoming(self.settings, self.there.domain, self.ledger)

    async def is_tested(self) -> None:
        """TEST, which refuses nothing."""
        for controller in self.controllers:
            assert await self.test(controller) == []
            self.there.domain = self.there.domain.with_device(controller.target_device)
        self.there.incoming = self.xen_incoming()

    def session(self) -> Session:
        """All that the source has open; only what goes into the journal is looked at."""
        return Session(
            kind="move",
            host="a",
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
            held=cast("Any", None),
        )


def leaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """For a fixture."""
    xl = stand_in(tmp_path, monkeypatch)
    xl.has(pci=[HERE], usb={"0:1": (1, 6)}, assignable=[THERE])
    xl.plugged("1-1.4", 6)

    async def opened() -> Store:
        return Store()

    def life(domid: int) -> Life:
        return {7: RUNS}[domid]

    monkeypatch.setattr(xen_incoming.XenStore, "open", opened)
    for module in (xen_incoming, handle):
        monkeypatch.setattr(module, "life", life)
    return Scene(tmp_path, xl)
