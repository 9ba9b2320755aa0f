"""What of this host a domain's XML may name: by the settings, and by default nothing of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import pytest

from entourage.domain import Domain
from entourage.hosts.allowed import Allowed
from entourage.hosts.parts import HostPart, Kind
from entourage.hypervisors.libvirt.domainxml import Lookups, parse, read_domain
from entourage.hypervisors.libvirt.hostparts import host_parts
from entourage.settings.model import AgentSettings
from entourage.steps import Refusal
from lab import domain_xml as lab_xml
from lab.guest import Disk
from tests.e2e.libvirt.world import QEMU
from tests.unit.hosts.making import make

DATA = Path(__file__).with_name("data")
RUNNING = (DATA / "running-migratable.xml").read_text()
IMAGES = "/var/lib/libvirt/images"
LOOKUPS = Lookups(volume=lambda pool, name: f"{IMAGES}/{name}" if pool == "default" else "")


def parts(text: str) -> list[HostPart]:
    """What it names; without the emulator that any libvirt here would have."""
    found = host_parts(parse(text), LOOKUPS)
    return [part for part in found if (part.kind, part.name) != (Kind.PROGRAM, QEMU)]


def refused(text: str, *, built: bool = False, **settings: object) -> list[Refusal]:
    """By a host with these settings, or the default ones."""
    allowed = Allowed(AgentSettings(**settings))  # pyright: ignore[reportArgumentType]
    domain = Domain(name="web1", memory=1 << 28) if built else read_domain(RUNNING, LOOKUPS)
    return allowed.not_allowed(domain, "b", built=built, parts=parts(text))


def with_device(xml: str) -> str:
    return RUNNING.replace("</devices>", f"{xml}</devices>")


def test_an_ordinary_guest_needs_no_settings() -> None:
    assert refused(RUNNING) == []


def test_nor_does_the_labs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel lies in this repository, which the lab's settings name."""
    image = SimpleNamespace(kernel="/usr/share/k", initrd="/usr/share/i")

    def guest_image(*, agent: bool) -> SimpleNamespace:
        assert not agent
        return image

    monkeypatch.setattr(lab_xml, "guest_image", guest_image)
    text = lab_xml.domain_xml("web1", disks=[Disk(f"{IMAGES}/web1.qcow2", "qcow2")])
    domain = read_domain(text)
    assert Allowed(AgentSettings()).not_allowed(domain, "b", built=False, parts=parts(text)) == []


def test_where_it_is_and_whose() -> None:
    found = parts(with_device("<serial type='file'><source path='/etc/x'/></serial>"))
    [serial] = [part for part in found if part.name == "/etc/x"]
    assert serial == HostPart(
        kind=Kind.OTHER, name="/etc/x", place="devices/serial[2]/source/@path",
        beneath=("/var/log/libvirt",),
    )  # fmt: skip
    images = [part for part in found if part.kind is Kind.IMAGE]
    assert [(one.name, one.device, one.format, one.written) for one in images] == [
        (f"{IMAGES}/web1.qcow2", "block/vda", "qcow2", True),
        (f"{IMAGES}/base.raw", "block/vda", "raw", False),
        (f"{IMAGES}/data.img", "block/vdb", "raw", True),
        (f"{IMAGES}/debian-12.iso", "block/sdb", "raw", False),
    ]


ATTACKS = [
    (ET.tostring(attack[0], encoding="unicode"), attack.get("names", ""))
    for attack in ET.parse(DATA / "attacks.xml").getroot()  # noqa: S314 - ours
]


@pytest.mark.parametrize(("xml", "name"), ATTACKS)
def test_the_hosts_own_must_be_named(xml: str, name: str) -> None:
    text = with_device(xml)
    found = [one for one in refused(text) if name in str(one)]
    assert found, refused(text)
    key = "agent.boot-directories" if "boot-directories" in name else "agent.devices"
    assert any(key in one.remedy for one in found), found
    if ".." not in name and key == "agent.devices":
        after = refused(text, devices=(name,))
        assert not [one for one in after if f"{name} is not among" in one.reason]


REMOTE = "nbd:10.0.0.1:22/x"
NBD = "<source protocol='nbd' name='x'><host name='10.0.0.1' port='22'/></source>"
# What stands in the XML, what an attacker puts there, and what is refused.
CHANGES = [
    ("<emulator>/usr/bin/qemu-system-x86_64", "<emulator>/root/evil", "/root/evil"),
    (" readonly='yes' secure='yes' type='pflash'", " type='pflash'", "OVMF_CODE_4M.ms.fd"),
    ("nvram/web1_VARS.fd", "nvram/victim_VARS.fd", "nvram/victim_VARS.fd"),
    ("nvram/web1_VARS.fd", "nvram/web1.two_VARS.fd", "nvram/web1.two_VARS.fd"),
    ("nvram/web1_VARS.fd", "nvram/web1_VARS.x_VARS.fd", "nvram/web1_VARS.x_VARS.fd"),
    ("nvram/web1_VARS.fd", "varstore/web1.two.json", "varstore/web1.two.json"),
    ("nvram/web1_VARS.fd", "nvram/x/web1_VARS.fd", "nvram/x/web1_VARS.fd"),
    ("nvram/web1_VARS.fd", "nvram/web1.json", "nvram/web1.json"),
    ("/var/lib/libvirt/qemu/nvram/web1_VARS.fd", "/etc/web1_VARS.fd", "/etc/web1_VARS.fd"),
    ("/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "/etc/passwd", "/etc/passwd"),
    ("<boot dev='hd'/>", "<acpi><table type='slic'>/etc/passwd</table></acpi>", "/etc/passwd"),
    ("<boot dev='hd'/>", "<dtb>/etc/passwd</dtb>", "/etc/passwd"),
    ("<boot dev='hd'/>", "<init>/sbin/x</init>", "/sbin/x"),
    ("<sysinfo type='smbios'>", "<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/x'/>",
     "/etc/x"),
    ("<seclabel type='dynamic' model='dac'", "<seclabel type='static' model='dac'",
     "libvirt:seclabel"),
    ("<seclabel type='dynamic' model='apparmor'", "<seclabel type='none' model='apparmor'",
     "libvirt:seclabel"),
    ("<label>+64055:+106</label>", "<baselabel>x_t</baselabel>", "libvirt:seclabel"),
    ("index='3'/>", "index='3'><seclabel model='dac' relabel='no'/></source>", "libvirt:seclabel"),
    ("<pm>", "<x:commandline xmlns:x='http://libvirt.org/schemas/domain/qemu/1.0'/><pm>",
     "libvirt:commandline"),
    ("<pm>", "<x:override xmlns:x='http://libvirt.org/schemas/domain/qemu/1.0'/><pm>",
     "libvirt:override"),
    ("<pm>", "<bootloader>/x</bootloader><pm>", "libvirt:bootloader"),
    ("<domain type", "<domain xmlns='urn:x' type", "libvirt:{urn:x}domain"),
    ("<readonly/>\n      <alias name='sata0-0-1'/>", "<source file='/etc/x'/>",
     "libvirt:ambiguous"),
    ("<nvram template=", f"<nvram type='network'>{NBD}</nvram><nvram template=", REMOTE),
    ("<loader ", f"<loader>{NBD}</loader><loader ", REMOTE),
    ("<loader ", "<loader nbd='y' ", "libvirt:os/loader/@nbd"),
    ("<boot dev='hd'/>", "<nvram><source pool='default' volume='x'/></nvram>",
     "libvirt:os/nvram/source/@pool"),
    ("<boot dev='hd'/>", "<idmap/>", "libvirt:os/idmap"),
    ("<pm>", f"<launchSecurity>{NBD}</launchSecurity><pm>", REMOTE),
    *(("<pm>", f"<cputune><{tag} scheduler='{scheduler}' priority='1'/></cputune><pm>",
       "libvirt:scheduler")
      for tag in ("vcpusched", "iothreadsched", "emulatorsched")
      for scheduler in ("fifo", "rr", "deadline")),
    ("<pm>", "<cputune><cachetune vcpus='0'><cache id='0'/></cachetune></cputune><pm>",
     "libvirt:cachetune"),
    ("<pm>", "<cputune><memorytune vcpus='0'/></cputune><pm>", "libvirt:memorytune"),
    *(("<partition>/machine<", f"<partition>{partition}<", partition)
      for partition in ("/system.slice", "/machinery", "/machine/../system", "/machine/./..", "/")),
    ("<partition>/machine<", "<partition>system.slice<", "libvirt:partition"),
    ("<pm>", "<devices/><pm>", "libvirt:ambiguous"),
    ("<pm>", "<os/><pm>", "libvirt:ambiguous"),
    ("port='5901'", "port='22'", "22"),
    ("name='org.qemu.guest_agent.0' state", "name='other' state", "org.qemu.guest_agent.0"),
    ("domain-3-web1/org.qemu", "../org.qemu", "../org.qemu.guest_agent.0"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "name"), CHANGES)
def test_what_is_elsewhere_in_it(old: str, new: str, name: str) -> None:
    text = RUNNING.replace(old, new, 1)
    assert text != RUNNING
    found = refused(text)
    assert any(name in one.reason and "agent." in one.remedy for one in found), found


def test_its_share_of_a_processor_needs_no_settings() -> None:
    share = "<cputune><shares>2048</shares><vcpusched scheduler='batch'/></cputune><pm>"
    text = RUNNING.replace("<pm>", share)
    assert refused(text.replace("<partition>/machine<", "<partition>/machine/gold-1.a<")) == []


@pytest.mark.parametrize("own", ["nvram/web1_VARS.qcow2", "varstore/web1.json"])
def test_its_own_variables_need_no_settings(own: str) -> None:
    assert refused(RUNNING.replace("nvram/web1_VARS.fd", own)) == []


@pytest.mark.parametrize(
    ("xml", "place"),
    [
        ("<disk type='file'><source file='/etc/shadow'/><target dev='vdz'/></disk>", "/etc/shadow"),
        ("<disk type='block'><source dev='/etc/shadow'/><target dev='vdz'/></disk>", "/etc/shadow"),
        ("<disk type='file'><source file='etc/shadow'/><target dev='vdz'/></disk>", "etc/shadow"),
        (
            "<disk type='file'><mirror type='file'><source file='/etc/x'/></mirror></disk>",
            "/etc/x",
        ),
        (
            "<disk><mirror><backingStore><source file='/x'/></backingStore></mirror></disk>",
            "/x",
        ),
    ],
)  # fmt: skip
def test_a_disk_that_the_domain_does_not_have(xml: str, place: str) -> None:
    """Only an image that this migration has made or proven is one of its disks."""
    found = refused(with_device(xml), built=True)
    assert any(place in one.reason for one in found), found


def test_disks_are_those_that_were_made(tmp_path: Path) -> None:
    """Each in its own format; what the XML has below one must have been proven."""
    text = RUNNING.replace(IMAGES, str(tmp_path)).replace("type='volume'", "type='file'")
    text = text.replace("pool='default' volume='data.img'", f"file='{tmp_path}/data.img'")
    names = ("web1.qcow2", "base.raw", "data.img", "debian-12.iso")
    allowed = Allowed(AgentSettings(image_directories=(str(tmp_path),)))

    def said(xml: str) -> Sequence[str]:
        domain = Domain(name="web1", memory=1 << 28)
        found = allowed.not_allowed(domain, "b", built=True, parts=parts(xml))
        return [name for name in names for one in found if f"/{name} was" in one.reason]

    for name in names:
        (tmp_path / name).write_text(name)
    assert said(text) == list(names)
    make(allowed, f"{tmp_path}/web1.qcow2", "qcow2")
    make(allowed, f"{tmp_path}/data.img")
    allowed.prove(f"{tmp_path}/base.raw")
    allowed.prove_content(f"{tmp_path}/debian-12.iso")
    assert said(text) == []
    assert said(text.replace("type='qcow2'", "type='raw'")) == ["web1.qcow2"]
    written = text.replace("device='cdrom'", "device='disk'").replace("<readonly/>", "")
    assert said(written) == ["debian-12.iso"]


@pytest.mark.parametrize(
    "around",
    [
        *("<disk type='network'>{}</disk>", "<disk type='file'>{}</disk>"),
        "<disk><mirror type='network'>{}</mirror></disk>",
        "<disk><backingStore><backingStore type='network'>{}</backingStore></backingStore></disk>",
        "<disk type='file'><source file='/srv/a'><dataStore>{}</dataStore></source></disk>",
        "<disk type='vhostuser'><x>{}</x></disk>",
        "<hostdev mode='subsystem' type='scsi'>{}</hostdev>",
        "<hostdev mode='subsystem' type='pci'>{}</hostdev>",
        *("<filesystem>{}</filesystem>", "<memory>{}</memory>", "<tpm><backend>{}</backend></tpm>"),
    ],
)
@pytest.mark.parametrize("source", [NBD, NBD.replace("protocol='nbd' ", "")])
def test_another_host_is_named_wherever_it_is(around: str, source: str) -> None:
    """An element that libvirt connects by, also one where nobody would look for it."""
    name = REMOTE if "protocol" in source else REMOTE.removeprefix("nbd")
    assert name in [one.name for one in parts(with_device(around.format(source)))]


def test_networks_are_held_to_their_setting() -> None:
    text = with_device("<interface type='direct'><source dev='eth9' mode='bridge'/></interface>")
    found = refused(text, built=True, networks=("default",))
    assert [one.reason for one in found if "eth9" in one.reason]
    assert not [one for one in found if "virbr0" in one.reason]
    assert all("agent.networks" in one.remedy for one in found if "eth9" in one.reason)


@pytest.mark.parametrize("kind", ["network", "bridge", "ethernet"])
def test_a_tap_of_the_hosts_is_not_taken_over(kind: str) -> None:
    """A persistent one that nobody uses would be given to the machine."""
    tap = f"<interface type='{kind}'><source {kind}='br0'/><target dev='{{}}'/></interface>"
    found = refused(with_device(tap.format("lo")), built=True)  # the one that is everywhere
    assert any("an interface lo is here already" in one.reason for one in found), found
    kept = with_device(tap.format("vnet0' managed='no"))
    assert any("tap:vnet0 is not among" in one.reason for one in refused(kept, built=True))
    assert not any("vnet0" in one.reason for one in refused(kept, devices=("tap:vnet0",)))
    for free in ("web1-tap", "vnet0"):
        found = refused(with_device(tap.format(free)), built=True)
        assert not [one for one in found if "interface" in one.reason], found
    # At TEST the NIC's controller says it, and leaves the name out.
    named = "<interface type='network'><target dev='lo'/></interface>"
    domain = read_domain(with_device(named), LOOKUPS)
    said = Allowed(AgentSettings()).not_allowed(
        domain, "b", built=False, parts=parts(with_device(named))
    )
    assert said == []


@pytest.mark.parametrize(
    "number", ["<hostdev mode='subsystem' type='pci'><source><address bus='x'/></source></hostdev>"]
)
def test_a_number_that_is_none(number: str) -> None:
    with pytest.raises(ValueError, match="x"):
        parts(with_device(number))


def test_a_udp_line_has_two_sources() -> None:
    line = (
        "<serial type='udp'><source mode='bind' host='0.0.0.0' service='2445'/>"
        "<source mode='connect' host='10.0.0.1' service='514'/></serial>"
    )
    named = ("udp:0.0.0.0:2445", "udp:10.0.0.1:514")
    assert refused(with_device(line), devices=named) == []
    twice = line.replace("'bind'", "'connect'")
    assert any("libvirt:ambiguous" in str(one) for one in refused(with_device(twice)))


def test_many_devices_take_no_longer_each() -> None:
    """An XML of a link frame's size must not hold the agent up."""
    devices = "".join(
        f"<disk type='file'><target dev='d{number}'/></disk>" for number in range(9000)
    )
    found = list(host_parts(parse(f"<domain><devices>{devices}</devices></domain>"), LOOKUPS))
    assert found == []
    at = "<serial type='file'><source path='/x'/></serial>" * 3
    places = [one.place for one in parts(f"<domain><devices>{at}</devices></domain>")]
    assert places == [f"devices/serial[{number}]/source/@path" for number in (1, 2, 3)]
