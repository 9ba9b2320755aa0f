"""From a domain to QEMU's arguments."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entourage.domain import Block, Boot, Domain, Net, Pci, Tpm, Usb
from entourage.errors import UsageError
from entourage.hypervisors.qemu.cmdline import (
    HostThings,
    block_node,
    command_line,
    escaped,
    export_name,
    mirror_name,
    node_name,
)
from entourage.hypervisors.qemu.paths import Places
from entourage.hypervisors.qemu.resolve import resolve

TYPES = {"q35": "pc-q35-7.2", "pc": "pc-i440fx-7.2"}
PLACES = Places(run=Path("/run/e/q/0"), state=Path("/state"), log=Path("/log"))
UUID = "3adaa9db-b504-4d7e-b775-13aaf542789b"


def resolved(**fields: Any) -> Domain:
    base = Domain(name="web1", memory=256 << 20, uuid=UUID, accel="tcg")
    return resolve(
        msgspec.structs.replace(base, **fields), uuid=None, machine_types=TYPES, kvm=False
    )


def things(domain: Domain, **fields: Any) -> HostThings:
    return HostThings(
        qemu="/usr/bin/qemu-system-x86_64",
        places=PLACES,
        monitors={"qmp": 5, "guard": 6},
        console=7,
        taps={net.id: 10 + index for index, net in enumerate(domain.net)},
        **fields,
    )


def argv(domain: Domain, **fields: Any) -> list[str]:
    return command_line(domain, things(domain, **fields))


def values(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(arguments) if name == option]


def devices(arguments: list[str]) -> dict[str, dict[str, Any]]:
    """All devices, by their driver."""
    found = [json.loads(value) for value in values(arguments, "-device")]
    return {device["driver"]: device for device in found}


def test_the_machine_is_made_stopped_and_bare() -> None:
    arguments = argv(resolved(vcpus=2))
    for option in ("-S", "-nodefaults", "-no-user-config"):
        assert option in arguments
    assert values(arguments, "-machine") == ["pc-q35-7.2"]
    assert values(arguments, "-accel") == ["tcg,thread=multi"]
    assert values(arguments, "-cpu") == ["max"]
    assert values(arguments, "-m") == [f"size={256 << 20}B"]
    assert values(arguments, "-smp") == ["cpus=2"]
    assert values(arguments, "-uuid") == [UUID]
    assert values(arguments, "-msg") == ["timestamp=on"]
    assert values(arguments, "-sandbox")[0].startswith("on,")
    assert "-incoming" not in arguments


def test_only_incoming_differs_between_the_hosts() -> None:
    domain = resolved(block=(Block(id="disk0", path="/srv/a.img"),), net=(a_net(),))
    source, target = argv(domain), argv(domain, incoming=True)
    index = target.index("-incoming")
    assert target[index + 1] == "defer"
    assert [*target[:index], *target[index + 2 :]] == source


def a_net(**fields: Any) -> Net:
    return Net(id="net0", bridge="br0", **fields)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_no_name_can_add_an_option(name: str) -> None:
    domain = msgspec.structs.replace(resolved(), name=name)
    arguments = argv(domain)
    assert values(arguments, "-name") == [f"guest={escaped(name)},debug-threads=on"]
    assert len(arguments) == len(argv(resolved()))


@settings(deadline=None)
@given(st.text(max_size=20))
def test_escaped_values_are_read_back(value: str) -> None:
    assert escaped(value).replace(",,", "\0").count(",") == 0
    assert escaped(value).replace(",,", ",") == value


def test_boot() -> None:
    boot = Boot(kernel="/boot/a, b", initrd="/boot/i", cmdline="console=ttyS0 a,b 'c'")
    arguments = argv(resolved(boot=boot))
    assert values(arguments, "-kernel") == ["/boot/a, b"]
    assert values(arguments, "-initrd") == ["/boot/i"]
    assert values(arguments, "-append") == ["console=ttyS0 a,b 'c'"]
    assert values(argv(resolved(boot=Boot(firmware="/f"))), "-bios") == ["/f"]


def test_a_firmware_with_variables() -> None:
    boot = Boot(firmware="/OVMF, CODE.fd", nvram="/srv/vars.fd", nvram_template="/vars")
    domain = resolved(boot=boot, block=(Block(id="disk0", path="/srv/a.img"),))
    assert domain.boot == Boot(firmware="/OVMF, CODE.fd")
    arguments = argv(domain)
    assert "-bios" not in arguments
    [machine] = values(arguments, "-machine")
    assert machine == "pc-q35-7.2,pflash0=firmware,pflash1=n1-nvram"
    nodes = {n["node-name"]: n for n in map(json.loads, values(arguments, "-blockdev"))}
    assert nodes["firmware"]["read-only"] is nodes["firmware"]["file"]["read-only"] is True
    assert nodes["firmware"]["file"]["filename"] == "/OVMF, CODE.fd"
    assert nodes["n1-nvram"]["read-only"] is False
    # All of it is written in the blackout.
    assert nodes["n1-nvram"]["file"]["cache"]["direct"] is False
    assert list(devices(arguments)) == ["virtio-blk-pci"]


def test_a_disk() -> None:
    disk = Block(id="disk0", path="/srv/a, b.qcow2", format="qcow2", serial="S1", cache="none")
    domain = resolved(block=(disk,))
    arguments = argv(domain)
    (node,) = (json.loads(value) for value in values(arguments, "-blockdev"))
    assert node["node-name"] == "n0-disk0"
    assert node["driver"] == "qcow2"
    assert node["file"]["filename"] == "/srv/a, b.qcow2"
    assert node["file"]["driver"] == "file"
    for part in (node, node["file"]):
        assert part["cache"] == {"direct": True, "no-flush": False}
        assert part["discard"] == "unmap"
        assert part["read-only"] is False
    device = devices(arguments)["virtio-blk-pci"]
    assert device["drive"] == "n0-disk0"
    assert device["id"] == "block-disk0"
    assert (device["bus"], device["addr"]) == ("pcie.0", "03.0")
    assert device["serial"] == "S1"
    assert device["bootindex"] == 1


def test_a_disk_as_the_host_has_it() -> None:
    disk = Block(id="disk0", path="/dev/vg/a", cache="none")
    domain = resolved(block=(disk,))
    host = things(domain, host_devices=frozenset({disk.path}), buffered=frozenset({disk.path}))
    node = block_node(domain.block[0], "x", host)
    assert node["file"]["driver"] == "host_device"
    assert node["cache"]["direct"] is False


def test_read_only_media() -> None:
    cds = tuple(Block(id=f"cd{i}", path=f"/{i}.iso", model="ide-cd") for i in range(3))
    disk = Block(id="disk0", path="/a", readonly=True)
    arguments = argv(resolved(block=(disk, *cds)))
    nodes = [json.loads(value) for value in values(arguments, "-blockdev")]
    assert [node["read-only"] for node in nodes] == [True] * 4
    buses = [json.loads(value).get("bus") for value in values(arguments, "-device")]
    assert buses == ["pcie.0", "ide.0", "ide.1", "ide.2"]
    old = argv(resolved(block=cds, machine="pc"))
    units = [json.loads(value) for value in values(old, "-device")]
    assert [(u["bus"], u["unit"]) for u in units] == [("ide.0", 0), ("ide.0", 1), ("ide.1", 0)]
    many = tuple(Block(id=f"cd{i}", path=f"/{i}.iso", model="ide-cd") for i in range(7))
    with pytest.raises(UsageError, match="no place") as caught:
        argv(resolved(block=many))
    assert caught.value.device == "block/cd6"


def test_node_names_fit_and_differ() -> None:
    ids = ["a" * 31, "a" * 30 + "b", "m0-x", "n0-x"]
    domain = resolved(block=tuple(Block(id=i, path=f"/{i}") for i in ids))
    names = [
        name(domain, disk)
        for disk in domain.block
        for name in (node_name, mirror_name, export_name)
    ]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 31
    with pytest.raises(UsageError):
        node_name(domain, Block(id="other", path="/"))


def test_nics() -> None:
    nets = (a_net(mtu=9000), Net(id="net1", bridge="br0", model="e1000e", mtu=9000))
    domain = resolved(net=nets)
    arguments = argv(domain, vhost={"net0": 20})
    assert values(arguments, "-netdev") == [
        "tap,id=netdev-net0,fd=10,vhost=on,vhostfd=20",
        "tap,id=netdev-net1,fd=11",
    ]
    virtio = devices(arguments)["virtio-net-pci"]
    assert virtio["mac"] == domain.net[0].mac
    assert virtio["host_mtu"] == 9000
    assert "host_mtu" not in devices(arguments)["e1000e"]


@pytest.mark.parametrize(
    ("tpm", "chardev", "tpmdev"),
    [
        (Tpm(id="t"), "path=/run/e/q/0/swtpm.sock", "emulator,id=tpm-t,chardev=tpm-t"),
        (Tpm(id="t", type="external", socket="/a,b"), "path=/a,,b", "emulator"),
        (Tpm(id="t", type="passthrough", path="/dev/tpm1"), "", "passthrough,id=tpm-t,path=/dev/t"),
    ],
)
def test_tpms(tpm: Tpm, chardev: str, tpmdev: str) -> None:
    arguments = argv(resolved(tpm=(tpm,)))
    assert any(chardev in value for value in values(arguments, "-chardev"))
    assert values(arguments, "-tpmdev")[0].startswith(tpmdev)
    assert devices(arguments)["tpm-crb"]["tpmdev"] == "tpm-t"


def test_usb() -> None:
    usb = (Usb(id="tab", model="usb-tablet"), Usb(id="key", vendor=0x1050, product=0x407))
    found = devices(argv(resolved(usb=usb)))
    assert found["qemu-xhci"]["addr"] == "1e.0"
    assert found["usb-tablet"]["port"] == "1"
    assert found["usb-host"] == {
        "driver": "usb-host",
        "vendorid": 0x1050,
        "productid": 0x407,
        "id": "usb-key",
        "bus": "usb.0",
        "port": "2",
    }
    assert "qemu-xhci" not in devices(argv(resolved()))


def test_pci() -> None:
    pci = (Pci(id="rng", model="virtio-rng-pci"), Pci(id="gpu", host="0000:3b:00.0"))
    found = [json.loads(value) for value in values(argv(resolved(pci=pci)), "-device")]
    ports = [device for device in found if device["driver"] == "pcie-root-port"]
    assert [port["addr"] for port in ports] == ["03.0", "04.0"]
    assert len({port["chassis"] for port in ports}) == 2
    assert [device["bus"] for device in found if device not in ports] == ["port-rng", "port-gpu"]
    assert found[-1]["host"] == "0000:3b:00.0"
    old = devices(argv(resolved(pci=pci, machine="pc")))
    assert old["virtio-rng-pci"]["bus"] == "pci.0"
    assert old["virtio-rng-pci"]["addr"] == "03.0"
    assert "pcie-root-port" not in old


@pytest.mark.parametrize(
    "devices",
    [
        {"usb": (Usb(id="u"),)},
        {"pci": (Pci(id="p"),)},
        {"tpm": (Tpm(id="t", type="external"),)},
    ],
)
def test_a_device_that_is_nothing(devices: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs"):
        argv(resolved(**devices))
