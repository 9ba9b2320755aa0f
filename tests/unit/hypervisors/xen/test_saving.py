"""A domain of xl's into a save and out of it; small programs in the place of xl.

All else is real: both halves of the save, the transport under xl, and what takes its stream.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
import pytest

from entourage.domain import Domain, Net
from entourage.errors import HypervisorError
from entourage.hosts.parts import HostPart, Kind
from entourage.hosts.resources import MemoryLedger
from entourage.hypervisors.base import DataPlane
from entourage.hypervisors.saved import manifest as manifests
from entourage.hypervisors.saved.hypervisor import SavedHypervisor
from entourage.hypervisors.saved.incoming import SavingIncoming
from entourage.hypervisors.values import LocalData
from entourage.hypervisors.xen import incoming as incoming_module
from entourage.hypervisors.xen.handle import Handle
from entourage.hypervisors.xen.incoming import XenIncoming
from entourage.hypervisors.xen.machine import XenMachine
from entourage.hypervisors.xen.saving import XenSaving
from entourage.hypervisors.xen.xenstore import XenStore
from entourage.settings.model import PathSettings, Settings
from tests.unit.eventually import eventually
from tests.unit.hypervisors.xen.sends import XL, Store, did, installed, kill
from tests.unit.hypervisors.xen.stream import stream

UUID = "3e5948d6-8285-4068-8236-a0e7729aaa7a"
PATIENCE = 20.0
CONFIG = {
    "c_info": {"name": "web1", "uuid": UUID},
    "disks": [],
    "nics": [{"devid": 0, "bridge": "xenbr0"}],
}
NIC = Net(id="vif0", bridge="xenbr0", mac=None, model="other")
DOMAIN = Domain(name="web1", uuid=UUID, memory=1 << 20, net=(NIC,))
STREAM = stream([(1, bytes(300_000)), (9, b"context")], [(3, b"device model")], CONFIG)


@dataclass
class Scene:
    """A domain, and the directory that it is saved in.

    Attributes:
        at: Of xl, which writes down here what it does.
        place: Of everything.
    """

    machine: XenSaving
    incoming: SavingIncoming
    settings: Settings
    at: Path
    place: Path

    def did(self) -> set[str]:
        """Return what xl has done to the domain."""
        return did(self.at)

    @property
    def plane(self) -> DataPlane:
        socket = str(self.place / "run" / "m.sock")
        local = LocalData(socket=socket, generation=4, paused=False)
        where = str(self.place / "saved")
        return DataPlane(address="", ports=(1, 2), secret=None, local=local, host=where)

    async def begin(self) -> None:
        """Go on until the stream flows, and the domain is suspended."""
        await self.machine.arm(self.plane)
        await self.incoming.build(DOMAIN, self.plane, await self.machine.plan(DOMAIN))
        await self.machine.start(await self.incoming.listen(), live=False)
        assert await self.machine.stopped() > 0

    async def saved(self) -> None:
        """Save it."""
        await self.begin()
        await asyncio.gather(self.machine.landed(), self.incoming.landed())
        await self.machine.disarm_deadman()
        await self.incoming.run(paused=False)
        await self.machine.release()


def with_stream(script: str, sent: str) -> str:
    """xl's stand-in, with another stream."""
    first, last = script.split("stream = ", 1)
    return f"{first}stream = {sent}\n{last.split(chr(10), 1)[1]}"


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Scene]:
    with tempfile.TemporaryDirectory(prefix="xen.") as made:
        place = Path(made)
        script = with_stream(XL, '(at / "stream").read_bytes()')
        xl = installed(place, monkeypatch, script)
        (xl.parent / "stream").write_bytes(STREAM)
        paths = PathSettings(
            run=str(place / "run"), log=str(place / "log"), state=str(place / "state")
        )
        settings = msgspec.structs.replace(Settings(), paths=paths)
        store = cast("XenStore", Store(xl))
        one = Handle(store, 7, DOMAIN, CONFIG, place / "log" / "web1.log")
        machine = XenMachine(one, settings).saving
        assert isinstance(machine, XenSaving)
        incoming = SavingIncoming(
            DOMAIN, place / "saved", MemoryLedger(), {"xen_version": "4.17"}, place / "state"
        )
        yield Scene(machine, incoming, settings, xl.parent, place)
        await machine.close()
        await incoming.close()


async def test_what_xl_sends_is_what_is_saved(scene: Scene) -> None:
    async with asyncio.timeout(PATIENCE):
        await scene.saved()
    assert scene.did() == {"suspended", "renamed", "destroyed"}
    assert (scene.place / "saved" / "memory").read_bytes() == STREAM
    manifest = manifests.read_manifest(scene.place / "saved")
    assert (manifest.hypervisor, manifest.kept) == ("xen", b"")
    assert not (scene.place / "run" / f"xen-{UUID}").exists()


async def test_what_is_given_up_goes_on(scene: Scene) -> None:
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        await asyncio.gather(scene.machine.landed(), scene.incoming.landed())
        await scene.machine.abort()
        await scene.incoming.kill()
    assert scene.did() == {"suspended", "resumed"}
    assert not list(scene.place.glob("saved*"))


async def test_a_guest_that_is_to_stay_paused_is_before_xl_lets_it_run(scene: Scene) -> None:
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        await asyncio.gather(scene.machine.landed(), scene.incoming.landed())
        scene.machine.stay_paused()
        await scene.machine.abort()
    assert scene.did() == {"suspended", "paused", "resumed"}


async def test_one_that_went_on_too_early_is_noticed(scene: Scene) -> None:
    """An external tool may still work on its devices then."""
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        await asyncio.gather(scene.machine.landed(), scene.incoming.landed())
        await scene.machine.check_stood_still(1)
        kill("hypervisors.xen.keeper", str(scene.place))
        await eventually(lambda: "resumed" in scene.did())
        with pytest.raises(HypervisorError, match="has not stood still"):
            await scene.machine.check_stood_still(1)
        await scene.machine.abort()


async def test_a_stream_without_its_end_is_no_save(scene: Scene) -> None:
    """As if the keeper had seen less than xl has sent: it waits, and is killed."""
    (scene.at / "stream").write_bytes(STREAM[:-8])
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        landing = asyncio.create_task(scene.machine.landed())
        memory = manifests.partial(scene.place / "saved", DOMAIN) / manifests.MEMORY
        await eventually(lambda: memory.stat().st_size == len(STREAM) - 8)
        assert not landing.done()  # all that there is has gone through
        kill("hypervisors.xen.keeper", str(scene.place))
        with pytest.raises(HypervisorError, match=r"has ended early|does not go on|has closed"):
            await landing
        await scene.machine.abort()
    assert scene.did() == {"suspended", "resumed"}


async def test_what_is_no_stream_of_xls_is_no_save(scene: Scene) -> None:
    (scene.at / "stream").write_bytes(STREAM.replace(b"LibxlFmt", b"LibxlFmt"[::-1]))
    async with asyncio.timeout(PATIENCE):
        await scene.begin()
        with pytest.raises(HypervisorError):
            await scene.machine.landed()
        await scene.machine.abort()
    assert "of a form that is not known" in (scene.place / "log" / "web1.log").read_text()
    assert scene.did() == {"suspended", "resumed"}


class Looks:
    """Stands for xenstore and libxl on the host that it is restored on: nothing is there."""

    async def domain_ids(self, uuid: str) -> Sequence[int]:
        assert uuid == UUID
        return []

    async def close(self) -> None:
        pass


async def test_it_is_restored_on_another_bridge(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def opened() -> Looks:
        return Looks()

    monkeypatch.setattr(incoming_module.XenStore, "open", opened)
    seen: list[HostPart] = []

    async def check(parts: Sequence[HostPart]) -> None:
        seen.extend(parts)

    there = msgspec.structs.replace(DOMAIN, net=(msgspec.structs.replace(NIC, bridge="br1"),))
    async with asyncio.timeout(PATIENCE):
        await scene.saved()
        # What xl is given then has another header, of this length.
        length = len(STREAM) - len("xenbr0") + len("br1")
        (scene.at / "stream").write_bytes(bytes(length))
        saved = await SavedHypervisor(scene.settings, str(scene.place / "saved")).machine("web1")
        arriving = XenIncoming(scene.settings, there, MemoryLedger())
        arriving.check_with(check)
        await saved.arm(scene.plane)
        await arriving.build(there, scene.plane, await saved.plan(there))
        await saved.start(await arriving.listen(), live=False)
        await asyncio.gather(saved.landed(), arriving.landed())
        assert await arriving.run(paused=False) > 0
        await arriving.finish_arrival()
        await saved.close()
    networks = [part.name for part in seen if part.kind is Kind.NETWORK]
    assert networks == ["br1"]
