"""A domain of libvirt's, read from its XML; and the XML of the same domain for another host."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from entourage.domain import Block, External, Net, Pci, Usb
from entourage.errors import CannotExpress, ConfigError, HypervisorError
from entourage.hypervisors.libvirt import domainxml
from entourage.hypervisors.libvirt.domainxml import (
    Lookups,
    parse,
    read_domain,
    side_text,
)
from entourage.hypervisors.libvirt.retarget import differs, retarget
from entourage.hypervisors.side import Side, read_side, with_side

XML = """
<domain type='kvm' id='3'>
  <name>web1</name>
  <uuid>2f1c3c7e-9a4b-4d0e-8b57-0c6f5f0a9d11</uuid>
  <metadata>
    <entourage:devices xmlns:entourage="urn:entourage:domain">
      [[block]]
      id = "vda"
      copy = "flat"
    </entourage:devices>
  </metadata>
  <memory unit='KiB'>262144</memory>
  <vcpu placement='static' current='2'>4</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>/boot/vmlinuz</kernel>
    <cmdline>quiet</cmdline>
  </os>
  <cpu mode='custom'><model fallback='forbid'>EPYC</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='/srv/web1.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw'/>
      <source dev='/dev/vg/web1'/>
      <target dev='sda' bus='scsi'/>
      <shareable/>
    </disk>
    <disk type='volume' device='disk'>
      <driver name='qemu' type='raw'/>
      <source pool='default' volume='data.img'/>
      <target dev='vdb' bus='virtio'/>
      <serial>S1</serial>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='rbd' name='pool/image'/>
      <target dev='vdc' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <source file='/srv/cd.iso'/>
      <target dev='sdb' bus='sata'/>
      <readonly/>
    </disk>
    <disk type='file' device='cdrom'>
      <target dev='sdc' bus='sata'/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:01'/>
      <source bridge='br0'/>
      <target dev='vnet3'/>
      <model type='virtio'/>
    </interface>
    <interface type='network'>
      <mac address='52:54:00:00:00:02'/>
      <source network='default' portid='x' bridge='virbr0'/>
      <target dev='mine0'/>
      <model type='rtl8139'/>
      <mtu size='9000'/>
    </interface>
    <interface type='direct'>
      <mac address='52:54:00:00:00:03'/>
      <source dev='eth0' mode='bridge'/>
    </interface>
    <interface type='user'>
      <mac address='52:54:00:00:00:04'/>
    </interface>
    <tpm model='tpm-tis'>
      <backend type='emulator' version='1.2'/>
    </tpm>
    <hostdev mode='subsystem' type='usb'>
      <source><vendor id='0x1050'/><product id='0x0407'/></source>
    </hostdev>
    <hostdev mode='subsystem' type='pci'>
      <source><address domain='0x0000' bus='0x3b' slot='0x00' function='0x1'/></source>
    </hostdev>
    <redirdev bus='usb' type='spicevmc'/>
    <filesystem type='mount'>
      <driver type='virtiofs'/><source dir='/srv'/><target dir='s'/>
    </filesystem>
  </devices>
</domain>
"""
LOOKUPS = Lookups(volume=lambda pool, name: f"/pools/{pool}/{name}")


def test_a_domain_with_everything_is_read() -> None:
    domain = read_domain(XML, LOOKUPS)
    assert (domain.name, domain.memory, domain.vcpus) == ("web1", 256 << 20, 2)
    assert (domain.machine, domain.cpu, domain.accel) == ("pc-q35-7.2", "EPYC", "kvm")
    assert domain.boot.files == ("/boot/vmlinuz",)
    assert [device.label for device in domain.devices] == [
        "block/vda", "block/sda", "block/vdb", "block/sdb",
        "net/net0", "net/net1", "net/net2", "net/net3",
        "tpm/tpm0", "usb/usb0", "usb/redir0", "pci/pci0", "pci/fs0",
    ]  # fmt: skip


def test_disks() -> None:
    vda, sda, vdb, cd = read_domain(XML, LOOKUPS).block
    assert (vda.path, vda.format, vda.cache, vda.shared) == (
        "/srv/web1.qcow2", "qcow2", "none", "auto",
    )  # fmt: skip
    assert (sda.path, sda.model, sda.shared) == ("/dev/vg/web1", "other", "yes")
    assert (vdb.path, vdb.serial) == ("/pools/default/data.img", "S1")
    assert cd.readonly


def test_nics() -> None:
    bridge, network, direct, user = read_domain(XML, LOOKUPS).net
    assert (bridge.attach, bridge.bridge, bridge.tap, bridge.model) == (
        "bridge", "br0", None, "virtio-net",
    )  # fmt: skip
    assert (network.attach, network.network, network.bridge) == ("network", "default", "virbr0")
    assert (network.tap, network.model, network.mtu) == ("mine0", "other", 9000)
    assert (direct.attach, direct.bridge) == ("direct", "eth0")
    assert (user.attach, user.bridge) == ("other", "user")


def test_the_hosts_own_devices() -> None:
    domain = read_domain(XML, LOOKUPS)
    assert domain.tpm[0].version == "1.2"
    assert domain.usb == (
        Usb(id="usb0", vendor=0x1050, product=0x0407),
        Usb(id="redir0", model="usb-redir"),
    )
    assert domain.pci == (Pci(id="pci0", host="0000:3b:00.1"), Pci(id="fs0", model="virtiofs"))


def test_a_domain_travels_on_the_link() -> None:
    domain = read_domain(XML, LOOKUPS)
    wire = msgspec.msgpack.encode(domain)
    assert msgspec.msgpack.decode(wire, type=type(domain)) == domain


def test_a_name_that_cannot_be_used_is_said() -> None:
    with pytest.raises(HypervisorError, match="cannot be read"):
        read_domain(XML.replace("<name>web1<", "<name>.web1<"), LOOKUPS)


def test_what_is_no_xml_is_said() -> None:
    with pytest.raises(HypervisorError, match="cannot be read"):
        read_domain("<domain")


# For another host


def place(text: str, path: str) -> dict[str, str]:
    found = parse(text).find(path)
    assert found is not None
    return dict(found.attrib)


def test_nothing_differs_on_a_host_that_is_alike() -> None:
    domain = read_domain(XML, LOOKUPS)
    assert not differs(domain, domain)


def test_a_disk_elsewhere() -> None:
    here = read_domain(XML, LOOKUPS)
    there = here.with_device(msgspec.structs.replace(here.block[0], path="/dev/vg/new"))
    assert differs(here, there)
    text = retarget(XML, here, there, LOOKUPS)
    assert place(text, "devices/disk[1]/source") == {"dev": "/dev/vg/new"}
    assert place(text, "devices/disk[1]")["type"] == "block"
    assert place(text, "devices/disk[2]/source") == {"dev": "/dev/vg/web1"}


def test_a_volume_elsewhere_becomes_a_file() -> None:
    here = read_domain(XML, LOOKUPS)
    there = here.with_device(msgspec.structs.replace(here.block[2], path="/srv/data.img"))
    text = retarget(XML, here, there, LOOKUPS)
    assert place(text, "devices/disk[3]/source") == {"file": "/srv/data.img"}
    assert place(text, "devices/disk[3]")["type"] == "file"


def test_another_bridge_network_and_interface() -> None:
    here = read_domain(XML, LOOKUPS)
    there = here.with_device(msgspec.structs.replace(here.net[0], bridge="br1"))
    there = there.with_device(msgspec.structs.replace(here.net[1], network="lan", tap=None))
    there = there.with_device(msgspec.structs.replace(here.net[2], bridge="eth1"))
    text = retarget(XML, here, there, LOOKUPS)
    assert place(text, "devices/interface[1]/source") == {"bridge": "br1"}
    assert place(text, "devices/interface[2]/source") == {"network": "lan"}
    assert place(text, "devices/interface[3]/source") == {"dev": "eth1", "mode": "bridge"}


def test_a_networks_bridge_is_the_targets_business() -> None:
    here = read_domain(XML, LOOKUPS)
    there = here.with_device(msgspec.structs.replace(here.net[1], bridge="virbr7"))
    assert not differs(here, there)


NETWORK_NICS = """
<domain><name>web1</name><uuid>2f1c3c7e-9a4b-4d0e-8b57-0c6f5f0a9d11</uuid>
  <memory>262144</memory><os><type>hvm</type></os><devices>
  <interface type='bridge'>
    <mac address='52:54:00:00:00:01'/>
    <source network='lan' portgroup='web' portid='p' bridge='bra'/>
    <virtualport type='openvswitch'><parameters interfaceid='i' profileid='merged'/></virtualport>
    <model type='virtio'/>
  </interface>
  <interface type='direct'>
    <mac address='52:54:00:00:00:02'/>
    <source network='pool' dev='eth3' mode='bridge' portid='q'/>
  </interface>
  <interface type='hostdev'>
    <mac address='52:54:00:00:00:03'/>
    <source network='vfs'><address type='pci' domain='0' bus='1' slot='2' function='0'/></source>
  </interface>
  </devices></domain>
"""


def test_what_a_network_has_made_of_a_nic_is_still_on_the_network() -> None:
    nics = read_domain(NETWORK_NICS).net
    assert [(nic.attach, nic.network, nic.bridge) for nic in nics] == [
        ("network", "lan", "bra"), ("network", "pool", "eth3"), ("network", "vfs", "none"),
    ]  # fmt: skip


def test_another_network_keeps_portgroup_and_virtualport() -> None:
    """As libvirt migrates it, a NIC is what its user has attached."""
    here = read_domain(NETWORK_NICS)
    there = here.with_device(msgspec.structs.replace(here.net[0], network="wan"))
    migrated = NETWORK_NICS.replace(" portid='p' bridge='bra'", "").replace(
        "='bridge'", "='network'"
    )
    text = retarget(migrated, here, there, LOOKUPS)
    assert place(text, "devices/interface[1]/source") == {"network": "wan", "portgroup": "web"}
    assert place(text, "devices/interface[1]/virtualport")["type"] == "openvswitch"


# What waits for the next start


def test_a_pending_disk_and_nic_stay_as_they_are() -> None:
    here = read_domain(XML, LOOKUPS)
    there = here.with_device(msgspec.structs.replace(here.block[0], path="/srv/new.qcow2"))
    there = there.with_device(msgspec.structs.replace(here.net[0], bridge="br1"))
    kept = XML.replace("/srv/web1.qcow2", "/srv/pending.qcow2").replace("'br0'", "'br7'")
    text = retarget(kept, here, there, LOOKUPS)
    assert place(text, "devices/disk[1]/source") == {"file": "/srv/pending.qcow2"}
    assert place(text, "devices/interface[1]/source") == {"bridge": "br7"}


# What a user adds


def test_what_is_written_in_the_metadata_counts(tmp_path: Path) -> None:
    domain = with_side(
        read_domain(XML, LOOKUPS), read_side("web1", side_text(XML), directory=tmp_path)
    )
    assert domain.block[0].copy == "flat"
    assert domain.block[0].path == "/srv/web1.qcow2"


def test_a_file_wins_over_the_metadata(tmp_path: Path) -> None:
    (tmp_path / "web1.toml").write_text(
        '[[net]]\nid = "net0"\ntool = "/opt/fw"\n[[external]]\nid = "fpga0"\ntype = "fpga"\n'
    )
    domain = with_side(
        read_domain(XML, LOOKUPS), read_side("web1", side_text(XML), directory=tmp_path)
    )
    assert domain.block[0].copy == "auto"
    assert domain.net[0].tool == "/opt/fw"
    assert domain.external == (External(id="fpga0", type="fpga"),)


def test_a_device_that_is_not_there_is_said() -> None:
    side = Side(devices={"block/vdz": {"copy": "flat"}})
    with pytest.raises(ConfigError, match="block/vdz, which web1 does not have"):
        with_side(read_domain(XML, LOOKUPS), side)


def test_an_unknown_key_is_said_with_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "web1.toml").write_text('[[block]]\nid = "vda"\npath = "/x"\n')
    with pytest.raises(ConfigError, match=r"web1\.toml.*path"):
        read_side("web1", "", directory=tmp_path)


def test_types() -> None:
    domain = read_domain(XML, LOOKUPS)
    assert isinstance(domain.device("block/vda"), Block)
    assert isinstance(domain.device("net/net0"), Net)


# What cannot be expressed, by name


def said_of(name: str = "web1", os: str = "", devices: str = "") -> str:
    uuid = "2f1c3c7e-9a4b-4d0e-8b57-0c6f5f0a9d11"
    text = (
        f"<domain><name>{name}</name><uuid>{uuid}</uuid><memory>262144</memory>"
        f"<os><type>hvm</type>{os}</os><devices>{devices}</devices></domain>"
    )
    with pytest.raises(CannotExpress) as failure:
        read_domain(text, LOOKUPS)
    assert failure.value.remedy.endswith("`virsh migrate`")
    return failure.value.message


def test_a_long_name_is_named() -> None:
    said = said_of("x" * 70)
    assert said.startswith(f"the domain '{'x' * 70}' cannot be read: its name must have 1 to 63")


def test_two_tpms_are_counted() -> None:
    tpm = "<tpm model='{}'><backend type='emulator'/></tpm>"
    devices = tpm.format("tpm-spapr") + tpm.format("tpm-spapr-proxy")
    assert "it has 2 TPMs" in said_of(devices=devices)


def test_a_value_is_told_with_its_device_and_what_it_must_be() -> None:
    disk = "<disk type='file'><source file='x.img'/><target dev='vda'/></disk>"
    message = said_of(devices=disk)
    assert "block/vda" in message
    assert "'x.img'" in message
    assert "an absolute path" in message
    mtu = "<interface type='bridge'><source bridge='b'/><mtu size='100'/></interface>"
    assert "net/net0" in said_of(devices=mtu)
    assert "kernel" in said_of(os="<kernel>vmlinuz</kernel>")


def test_a_loader_without_a_directory_is_qemus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domainxml, "_FIRMWARE", (tmp_path / "none", tmp_path))
    text = XML.replace("<kernel>", "<loader>bios.bin</loader><kernel>")
    assert read_domain(text, LOOKUPS).boot.firmware is None
    (tmp_path / "bios.bin").touch()
    assert read_domain(text, LOOKUPS).boot.firmware == f"{tmp_path}/bios.bin"


def test_a_loader_that_libvirt_has_yet_to_choose_is_no_file() -> None:
    """Of a domain that is off."""
    os = "<os firmware='efi'><type>hvm</type><loader secure='yes'/><kernel/><cmdline/></os>"
    uuid = "<uuid>2f1c3c7e-9a4b-4d0e-8b57-0c6f5f0a9d11</uuid>"
    text = f"<domain type='kvm'><name>w</name>{uuid}<memory>262144</memory>{os}</domain>"
    boot = read_domain(text, LOOKUPS).boot
    assert (boot.firmware, boot.kernel, boot.cmdline) == (None, None, None)


def test_a_volume_that_is_no_file_is_libvirts_network_storage() -> None:
    lookups = Lookups(volume=lambda pool, name: f"{pool}/{name}")
    assert "block/vdb" not in {device.label for device in read_domain(XML, lookups).devices}
