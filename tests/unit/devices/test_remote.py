"""The target's halves of devices where no Entourage is, and the hypervisor speaks for the host."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from entourage.devices.base import AnyController, Controller, There
from entourage.devices.remote import AgentlessBlock, AgentlessNet, out_of_reach
from entourage.domain import Device, External, Net, Usb
from entourage.errors import DeviceError, HypervisorError
from entourage.hypervisors.agentless import Agentless
from entourage.hypervisors.libvirt.volumes import volume_xml
from entourage.hypervisors.values import NewVolume, Place
from entourage.target.controllers import target_controllers
from tests.unit.devices.test_harness import (
    CARRIES,
    MIB,
    FakeIncoming,
    Move,
    TwoHosts,
    domain_with,
    qcow2,
    raw,
)


@dataclasses.dataclass
class FakeAgentless(FakeIncoming):
    """A fake: its storage pools are directories of this host."""

    pools: tuple[Path, ...] = ()
    free: int = 1 << 40
    known: frozenset[str] = frozenset({"br0", "eth0"})
    made: list[NewVolume] = dataclasses.field(default_factory=list[NewVolume])

    @property
    def agentless(self) -> Agentless:
        return self

    async def place(self, path: str, beside: str = "") -> Place | None:
        there = Path(path)
        if there.parent not in self.pools:
            return None
        return Place(
            pool=str(there.parent),
            free=self.free,
            size=there.stat().st_size if there.exists() else None,
            marked=bool(beside) and (there.parent / beside).exists(),
        )

    async def make_volume(self, volume: NewVolume) -> None:
        self.made.append(volume)

    async def delete_volume(self, path: str) -> None:
        raise HypervisorError(path)

    async def interfaces(self) -> frozenset[str]:
        return self.known


class FarMove(Move):
    """A disk that moves to such a host; its pool is the source's directory there."""

    def __init__(self, tmp_path: Path, path: Path, **fields: Any) -> None:
        super().__init__(tmp_path, path, **fields)
        self.controller = AgentlessBlock(self.disk)
        self.far = FakeAgentless(copies=CARRIES, pools=(self.hosts.on_target(path.parent),))
        self.hosts.machine.copies = CARRIES
        self.hosts.there.incoming = self.far  # type: ignore[assignment]


async def test_a_disk_is_made_in_a_pool_and_written_down_before(tmp_path: Path, srv: Path) -> None:
    image = qcow2(srv / "web1.qcow2", "-o", "cluster_size=128K")
    image.chmod(0o640)
    move = FarMove(tmp_path, image, format="qcow2")
    await move.through()
    [volume] = move.far.made
    assert volume.path == str(move.hosts.on_target(image))
    assert (volume.format, volume.cluster_size, volume.mode) == ("qcow2", 131072, 0o640)
    assert volume.owner == image.stat().st_uid
    assert move.hosts.ledger.rows == [("volume", {"path": volume.path})]
    assert move.hosts.machine.calls == [("carry", "block/disk0")]
    assert not list(move.hosts.root.rglob("*.qcow2"))


async def test_no_pool_no_disk(tmp_path: Path, srv: Path) -> None:
    move = FarMove(tmp_path, raw(srv / "web1.img"))
    move.far.pools = ()
    refusal = await move.refusal()
    assert "no storage pool" in refusal.reason
    assert "virsh pool-create-as" in refusal.remedy


async def test_a_shared_directory_is_known_by_what_is_written_into_it(
    tmp_path: Path, srv: Path
) -> None:
    image = raw(srv / "web1.img", data=b"x")
    move = FarMove(tmp_path, image)
    move.hosts.share(srv)
    await move.through()
    assert move.far.made == []
    assert move.hosts.machine.calls == []


async def test_what_is_there_already_is_refused(tmp_path: Path, srv: Path) -> None:
    image = raw(srv / "web1.img", data=b"x")
    move = FarMove(tmp_path, image)
    (move.hosts.mkdir(srv) / "web1.img").write_bytes(b"a user's")
    assert "is there already" in (await move.refusal()).reason


async def test_a_pool_that_is_too_full(tmp_path: Path, srv: Path) -> None:
    move = FarMove(tmp_path, raw(srv / "web1.img", size=64 * MIB))
    move.far.free = MIB
    assert "no space left in the storage pool" in (await move.refusal()).reason


async def test_a_medium_cannot_be_compared_from_afar(tmp_path: Path, srv: Path) -> None:
    image = raw(srv / "cd.iso", data=b"x" * 4096)
    move = FarMove(tmp_path, image, readonly=True)
    (move.hosts.mkdir(srv) / "cd.iso").write_bytes(image.read_bytes())
    assert "to compare its content" in (await move.refusal()).reason


async def test_what_libvirt_cannot_keep_of_an_image_is_said(tmp_path: Path, srv: Path) -> None:
    image = qcow2(srv / "web1.qcow2", "-o", "refcount_bits=32")
    move = FarMove(tmp_path, image, format="qcow2")
    await move.through()
    assert any("refcount_bits = 32" in warning for warning in move.hosts.warnings)


@pytest.mark.parametrize(
    ("nic", "reason"),
    [
        (Net(id="n", bridge="br0"), ""),
        (Net(id="n", bridge="br7"), "no bridge br7"),
        (Net(id="n", bridge="lan", attach="network", network="lan"), ""),
        (Net(id="n", bridge="wan", attach="network", network="wan"), "no network wan"),
    ],
)
async def test_a_nic(tmp_path: Path, nic: Net, reason: str) -> None:
    hosts = TwoHosts(domain_with(net=(nic,)), tmp_path)
    hosts.there.incoming = FakeAgentless(copies=CARRIES, running={"lan": "br0"})  # type: ignore[assignment]
    refusals = await hosts.test(AgentlessNet(nic))
    assert [reason in refusal.reason for refusal in refusals] == [True] * bool(reason)
    if not reason:
        controller = AgentlessNet(nic)
        await controller.test(hosts.here(controller.test_there))
        await hosts.prepare(controller)
        assert hosts.there.domain.net[0].tap == nic.tap


async def test_where_libvirt_does_not_tell_of_interfaces_nothing_is_refused(tmp_path: Path) -> None:
    nic = Net(id="n", bridge="br7")
    hosts = TwoHosts(domain_with(net=(nic,)), tmp_path)
    hosts.there.incoming = FakeAgentless(copies=CARRIES, known=frozenset())  # type: ignore[assignment]
    assert await hosts.test(AgentlessNet(nic)) == []


def test_who_is_afar_gets_other_halves() -> None:
    domain = domain_with(net=(Net(id="n", bridge="br0"),), usb=(Usb(id="u", model="usb-tablet"),))
    incoming: Any = FakeAgentless()
    assert type(target_controllers(domain, incoming)[0]) is AgentlessNet
    local: Any = FakeIncoming()
    assert type(target_controllers(domain, local)[0]) is not AgentlessNet


class Gadget(Controller[External]):
    """One that another package brings, with a part to do on the target."""

    async def transfer_there(self, there: There, request: Any) -> Any:
        raise DeviceError("not reached")


class Simple(Controller[External]):
    """One that has nothing to do there."""


def test_a_controller_with_a_part_over_there_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def kind(device: Device) -> type[AnyController] | None:
        return {"fpga0": Gadget, "led0": Simple}.get(device.id)

    monkeypatch.setattr("entourage.devices.remote.controller_class", kind)
    domain = domain_with(
        external=tuple(External(id=id_, type="x") for id_ in ("fpga0", "led0", "t"))
    )
    [refusal] = out_of_reach(domain, "b")
    assert (refusal.device, refusal.host) == ("external/fpga0", "b")
    assert "install Entourage" in refusal.remedy


def test_the_xml_of_a_volume() -> None:
    volume = NewVolume(
        path="/srv/a & b.qcow2",
        format="qcow2",
        size=1 << 30,
        allocated=True,
        cluster_size=65536,
        backing="/srv/base.raw",
        backing_format="raw",
        mode=0o640,
        owner=7,
        group=8,
    )
    root = ET.fromstring(volume_xml(volume))  # noqa: S314 - our own
    assert root.findtext("name") == "a & b.qcow2"
    assert root.findtext("capacity") == root.findtext("allocation") == str(1 << 30)
    assert root.findtext("target/clusterSize") == "65536"
    assert root.findtext("target/permissions/mode") == "0640"
    assert root.findtext("target/permissions/owner") == "7"
    assert root.findtext("backingStore/path") == "/srv/base.raw"
    bare = ET.fromstring(volume_xml(NewVolume(path="/srv/x.img", format="raw", size=512)))  # noqa: S314
    assert bare.findtext("allocation") == "0"
    assert bare.find("backingStore") is None
    assert bare.find("target/permissions/owner") is None
