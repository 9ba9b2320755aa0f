from __future__ import annotations

import struct
from pathlib import Path

import pytest

from entourage.devices.base import Options
from entourage.devices.net import NetController
from entourage.domain import Net
from entourage.steps import Refusal, Step
from tests.unit.devices.test_harness import TwoHosts, domain_with

MAC = "52:54:00:AA:bb:cc"


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The interfaces of both hosts, as sysfs shows them; there are none yet."""
    made = tmp_path / "net"
    made.mkdir()
    monkeypatch.setattr("entourage.devices.net.SYS", made)
    return made


def bridge(net: Path, name: str, mtu: int = 1500) -> Path:
    (net / name / "bridge").mkdir(parents=True)
    (net / name / "mtu").write_text(f"{mtu}\n")
    (net / name / "brif").mkdir()
    return net / name


def port(net: Path, on: Path, name: str, number: int, *, tap: bool) -> None:
    (net / name / "brport").mkdir(parents=True)
    (net / name / "brport" / "port_no").write_text(f"{number:#x}\n")
    if tap:
        (net / name / "tun_flags").write_text("0x1002\n")
    (on / "brif" / name).symlink_to(net / name / "brport")


def seen(on: Path, mac: str, number: int, *, own: bool = False) -> None:
    """What the bridge has learned, as the kernel's struct __fdb_entry."""
    packed = struct.pack(
        "6sBBIBBH", bytes.fromhex(mac.replace(":", "")), number & 0xFF, own, 7, number >> 8, 0, 0
    )
    with (on / "brforward").open("ab") as file:
        file.write(packed)


class Move:
    def __init__(self, tmp_path: Path, nic: Net, **nets: str) -> None:
        self.hosts = TwoHosts(domain_with(net=(nic,)), tmp_path / "b")
        self.hosts.options = Options(nets=nets)
        self.controller = NetController(nic)

    async def test(self) -> list[Refusal]:
        return await self.hosts.test(self.controller)


async def test_a_nic_goes_onto_the_bridge_of_that_name(tmp_path: Path, net: Path) -> None:
    bridge(net, "br0")
    move = Move(tmp_path, Net(id="net0", bridge="br0", mac=MAC))
    assert await move.test() == []
    assert move.hosts.warnings == []


async def test_no_such_bridge(tmp_path: Path, net: Path) -> None:
    bridge(net, "br1")
    bridge(net, "lan")
    (net / "eth0").mkdir()
    (refusal,) = await Move(tmp_path, Net(id="net0", bridge="br0")).test()
    assert str(refusal) == (
        "net/net0 on b: there is no bridge br0 (--net br0=… with one of: br1, lan)"
    )


NETWORK = Net(id="net0", bridge="virbr0", attach="network", network="default", mac=MAC)


async def test_a_network_of_the_hypervisors(tmp_path: Path, net: Path) -> None:
    move = Move(tmp_path, NETWORK)
    move.hosts.incoming.running = {"default": "virbr7"}
    assert await move.test() == []


async def test_no_such_network(tmp_path: Path, net: Path) -> None:
    move = Move(tmp_path, NETWORK)
    move.hosts.incoming.running = {"lan": "virbr7"}
    (refusal,) = await move.test()
    assert (refusal.reason, refusal.remedy) == (
        "there is no network default",
        "--net default=… with one of: lan",
    )


async def test_another_network_when_asked(tmp_path: Path, net: Path) -> None:
    move = Move(tmp_path, NETWORK, default="lan")
    move.hosts.incoming.running = {"lan": "virbr7"}
    assert await move.test() == []
    wanted = move.controller.target_device
    assert isinstance(wanted, Net)
    assert wanted.network == "lan"


async def test_an_interface_of_the_hosts(tmp_path: Path, net: Path) -> None:
    (net / "eth1").mkdir()
    (net / "eth1" / "mtu").write_text("1500\n")
    direct = Net(id="net0", bridge="eth0", attach="direct", mac=MAC)
    (refusal,) = await Move(tmp_path, direct).test()
    assert refusal.reason == "there is no interface eth0"
    assert await Move(tmp_path, direct, eth0="eth1").test() == []


async def test_a_nic_that_only_its_hypervisor_knows(tmp_path: Path, net: Path) -> None:
    assert await Move(tmp_path, Net(id="net0", bridge="user", attach="other")).test() == []


async def test_no_bridge_at_all(tmp_path: Path, net: Path) -> None:
    (net / "br0").mkdir()  # an interface of that name is not yet a bridge
    (refusal,) = await Move(tmp_path, Net(id="net0", bridge="br0")).test()
    assert refusal.remedy == "make br0 there"


async def test_another_bridge_when_asked(tmp_path: Path, net: Path) -> None:
    bridge(net, "br1")
    move = Move(tmp_path, Net(id="net0", bridge="br0"), br0="br1")
    assert await move.test() == []
    await move.hosts.prepare(move.controller)
    assert move.hosts.there.domain.net[0].bridge == "br1"
    assert move.controller.device == Net(id="net0", bridge="br0")


async def test_the_bridge_here_is_wider(tmp_path: Path, net: Path) -> None:
    bridge(net, "br0", 9000)
    bridge(net, "br1", 1500)
    (refusal,) = await Move(tmp_path, Net(id="net0", bridge="br0"), br0="br1").test()
    assert refusal.reason == "bridge br1 has an MTU of 1500, the NIC needs 9000"
    assert "ip link set dev br1 mtu 9000" in refusal.remedy


async def test_the_nic_is_narrower_than_its_bridge(tmp_path: Path, net: Path) -> None:
    bridge(net, "br0", 9000)
    bridge(net, "br1", 1500)
    assert await Move(tmp_path, Net(id="net0", bridge="br0", mtu=1500), br0="br1").test() == []


async def test_the_nic_is_wider_than_any_bridge(tmp_path: Path, net: Path) -> None:
    bridge(net, "br0")
    (refusal,) = await Move(tmp_path, Net(id="net0", bridge="br0", mtu=1501)).test()
    assert "needs 1501" in refusal.reason


@pytest.mark.parametrize(
    ("number", "tap", "own", "warned"),
    [
        (3, True, False, True),
        (0x103, True, False, True),
        (3, False, False, False),  # the guest itself, seen through the wire
        (3, True, True, False),  # the tap's own address
    ],
)
async def test_another_guest_with_the_mac(
    tmp_path: Path, net: Path, number: int, *, tap: bool, own: bool, warned: bool
) -> None:
    br0 = bridge(net, "br0")
    port(net, br0, "other", 1, tap=True)
    port(net, br0, "port", number, tap=tap)
    seen(br0, "52:54:00:00:00:01", 1)
    seen(br0, MAC, number, own=own)
    move = Move(tmp_path, Net(id="net0", bridge="br0", mac=MAC))
    assert await move.test() == []
    expected = [f"another guest there, behind port, uses the MAC {MAC}"] if warned else []
    assert move.hosts.warnings == expected


async def test_a_tap_keeps_its_name_where_it_is_free(tmp_path: Path, net: Path) -> None:
    bridge(net, "br0")
    nic = Net(id="net0", bridge="br0", tap="web1-0")
    move = Move(tmp_path, nic)
    assert await move.test() == []
    await move.hosts.prepare(move.controller)
    assert move.hosts.there.domain.net == (nic,)
    (net / "web1-0").mkdir()  # taken since it was tested
    await move.hosts.prepare(move.controller)
    assert move.hosts.there.domain.net[0].tap is None
    assert move.controller.target_device == move.hosts.there.domain.net[0]
    assert await move.test() == []
    assert "the tap gets another name" in move.hosts.warnings[0]


async def test_announced_on_arrival_and_after_a_rollback(tmp_path: Path, net: Path) -> None:
    bridge(net, "br1")
    move = Move(tmp_path, Net(id="net0", bridge="br0"), br0="br1")
    assert await move.test() == []
    await move.hosts.prepare(move.controller)
    await move.controller.arrived(move.hosts.there)
    assert move.hosts.incoming.calls == [("announce", "net/net0 on br1")]
    here = move.hosts.here(move.controller.recover_there)
    await move.controller.recover(here, Step.PREPARE)
    assert move.hosts.machine.calls == []
    await move.controller.recover(here, Step.TRANSFER)
    assert move.hosts.machine.calls == [("announce", "net/net0")]


async def test_a_hypervisor_that_cannot_announce(tmp_path: Path, net: Path) -> None:
    bridge(net, "br0")
    move = Move(tmp_path, Net(id="net0", bridge="br0"))
    move.hosts.machine.lacks = move.hosts.incoming.lacks = frozenset({"announcing"})
    assert await move.test() == []
    assert "cannot announce" in move.hosts.warnings[0]
    await move.controller.arrived(move.hosts.there)
    await move.controller.recover(move.hosts.here(move.controller.recover_there), Step.SYNC)
    assert move.hosts.incoming.calls == move.hosts.machine.calls == []


async def test_what_the_hypervisor_marks_is_refused(tmp_path: Path, net: Path) -> None:
    bridge(net, "br0")
    move = Move(tmp_path, Net(id="net0", bridge="br0"))
    move.hosts.blockers = (Refusal("net/net0", "a", "no migration support", "another model"),)
    assert await move.test() == list(move.hosts.blockers)
