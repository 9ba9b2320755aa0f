"""What a source hands to this host's libvirtd is what Entourage sends, about the domain opened."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from entourage.domain import Domain
from entourage.errors import HypervisorError
from entourage.hosts.parts import HostPart, Kind
from entourage.hypervisors.libvirt import handed
from entourage.hypervisors.libvirt.connection import Connection
from entourage.hypervisors.libvirt.constants import Flag, Parameter
from entourage.hypervisors.libvirt.domainxml import Lookups
from entourage.hypervisors.libvirt.plan import LibvirtPlan

UUID = "5b6e6d0e-0000-4000-8000-000000000001"
DOMAIN = Domain(name="web1", uuid=UUID, memory=1 << 28)
FLAGS = Flag.LIVE | Flag.PERSIST_DEST | Flag.UNDEFINE_SOURCE | Flag.UNSAFE | Flag.CHANGE_PROTECTION
CAPABILITIES = """<capabilities><guest><arch><emulator>/usr/bin/qemu</emulator>
<domain type="kvm"><emulator>/usr/bin/kvm</emulator></domain></arch></guest></capabilities>"""


def xml(devices: str = "", name: str = "web1", uuid: str = UUID) -> str:
    identity = f"<name>{name}</name><uuid>{uuid}</uuid>"
    return f"<domain>{identity}<devices>{devices}</devices></domain>"


def plan(text: str = "", **changes: Any) -> LibvirtPlan:
    parameters = {Parameter.DEST_XML.value: text or xml(), **changes.pop("parameters", {})}
    said = LibvirtPlan(parameters=parameters, flags=int(FLAGS))
    return msgspec.structs.replace(said, **changes)


def cookie(definition: str) -> bytes:
    return f"<qemu-migration><name>web1</name>{definition}</qemu-migration>\n\0".encode()


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Connection:
    """Return one to a libvirtd with two emulators and no pool."""

    def no_pools(_connection: Connection) -> Lookups:
        return Lookups()

    monkeypatch.setattr(handed, "lookups_of", no_pools)
    raw = SimpleNamespace(getCapabilities=lambda: CAPABILITIES)
    return cast("Connection", SimpleNamespace(raw=raw))


def test_what_entourage_sends_is_taken() -> None:
    sent = {"bandwidth": 20, "tls.destination": "b", "auto_converge.initial": 5}
    handed.check_plan(plan(parameters=sent), DOMAIN)
    copied = {"migrate_disks": ["vda"], "persistent_xml": xml()}
    copying = FLAGS | Flag.NON_SHARED_DISK | Flag.TLS | Flag.PAUSED | Flag.AUTO_CONVERGE
    handed.check_plan(plan(flags=int(copying), parameters=copied), DOMAIN)
    handed.check_plan(plan(xml(uuid=UUID.upper())), DOMAIN)
    handed.check_cookie(b"", DOMAIN)
    handed.check_cookie(cookie(xml()), DOMAIN)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (plan(parameters={"migrate_uri": "tcp://0.0.0.0:22"}), "migrate_uri"),
        (plan(parameters={"destination_name": "victim"}), "destination_name"),
        (plan(parameters={"listen_address": "0.0.0.0"}), "listen_address"),  # noqa: S104 - refused
        (plan(parameters={"disks_uri": "unix:///run/x"}), "disks_uri"),
        (plan(parameters={"bandwidth": "much"}), "bandwidth"),
        (plan(parameters={"migrate_disks": "vda"}), "migrate_disks"),
        (plan(flags=int(FLAGS) | 1 << 2), "0x4"),  # tunnelled
        (plan(flags=int(FLAGS | Flag.NON_SHARED_DISK)), "does not say which"),
        (LibvirtPlan(), "no XML"),
        (plan(xml(name="victim")), "not that of web1"),
        (plan(xml(uuid="5b6e6d0e-0000-4000-8000-000000000002")), "not that of web1"),
        (plan(xml(uuid="")), "not that of web1"),
        (plan(parameters={"persistent_xml": xml(name="victim")}), "not that of web1"),
        (plan("<x>" + xml() + "</x>"), "not that of web1"),
        (plan("<!DOCTYPE x [<!ENTITY e 'y'>]>" + xml()), "declares"),
        (plan("<?xml version='1.0' encoding='UTF-7'?>" + xml()), "declares"),
        (plan("\ufeff" + xml()), "begins with something else"),
    ],
)
def test_what_it_does_not_send_is_not(bad: LibvirtPlan, says: str) -> None:
    with pytest.raises(HypervisorError, match=says):
        handed.check_plan(bad, DOMAIN)


READ_IN_TWO_WAYS = [
    (
        xml("<disk xmlns:x='urn:x' x:type='volume' type='file'><source file='/srv/a'/></disk>"),
        "namespace",
    ),
    (xml("<disk xml:type='volume'/>"), "namespace"),
    (xml().replace("<domain>", "<domain xmlns:x='urn:x' x:type='kvm'>"), "namespace"),
    (
        xml().replace("<devices>", "<metadata xmlns:x='urn:x' x:y='z'/><devices>"),
        "namespace",
    ),
    (xml(name="web<!-- -->1"), "comment"),
    (xml("<!-- -->"), "comment"),
    (xml(name="<![CDATA[web1]]>"), "CDATA"),
    (xml(name="web1<x>y</x>"), "both text and elements"),
    (xml(uuid=f"{UUID}<x/>"), "both text and elements"),
    (xml("<emulator>/usr/bin/qemu<x>-evil</x></emulator>"), "both text and elements"),
    (xml("<x><domain><metadata><y>a<!-- --></y></metadata></domain></x>"), "comment"),
    (xml("<emulator>/usr/bin/a<?x y?></emulator>"), "processing instruction"),
    (xml().replace("<devices>", "<name>victim</name><devices>"), "not that of web1"),
    (xml().replace("<devices>", f"<uuid>{UUID}</uuid><devices>"), "not that of web1"),
    (xml(name="<x>web1</x>"), "not that of web1"),
]


@pytest.mark.parametrize(("text", "says"), READ_IN_TWO_WAYS)
def test_no_xml_is_read_in_two_ways(text: str, says: str) -> None:
    """By libvirt in another way than by what checks it here, wherever it comes in."""
    for bad in (plan(text), plan(parameters={"persistent_xml": text})):
        with pytest.raises(HypervisorError, match=says):
            handed.check_plan(bad, DOMAIN)
    with pytest.raises(HypervisorError, match=says):
        handed.check_cookie(cookie(text), DOMAIN)


def test_what_a_user_wrote_is_his_own_business() -> None:
    free = "<x:a xmlns:x='urn:x' x:b='c'>d<!-- e --><x:f><![CDATA[g]]></x:f>h</x:a>"
    text = xml().replace("<devices>", f"<metadata>{free}</metadata><devices>")
    handed.check_plan(plan(text), DOMAIN)
    handed.check_cookie(cookie(text), DOMAIN)


@pytest.mark.parametrize(
    "bad",
    [
        cookie(xml(name="victim")),
        cookie(xml()) + cookie(xml(name="victim")),
        b"<domain/>\0<domain/>\0",
        b"\xff\0",
        b"<?xml version='1.0' encoding='UTF-16'?><qemu-migration/>",
    ],
)
def test_a_cookie_brings_no_other_definition(bad: bytes) -> None:
    with pytest.raises(HypervisorError):
        handed.check_cookie(bad, DOMAIN)


@pytest.mark.parametrize("address", ["b:22", "b/x", "::1]:22", "[::1", "b?x", "fe80::1%x]:22"])
def test_an_address_brings_no_port(address: str) -> None:
    with pytest.raises(HypervisorError, match="no address"):
        handed.listening_at(address)


def test_addresses() -> None:
    assert handed.listening_at("10.0.0.2") == "tcp://10.0.0.2"
    assert handed.listening_at("b.example") == "tcp://b.example"
    assert handed.listening_at("fd00::2") == "tcp://[fd00::2]"
    assert handed.listening_at("fe80::2%eth0") == "tcp://[fe80::2%eth0]"


def names(parts: Any) -> list[tuple[Kind, str]]:
    return [(part.kind, part.name) for part in parts]


async def test_what_only_the_definition_has_is_nobody_elses_to_ask_about(
    connection: Connection,
) -> None:
    """Else it would be found at BUILD, and TEST has said yes."""
    disk = "<disk type='file'><source file='/srv/{}.img'/><target dev='vda'/></disk>"
    facts = {"xml": xml(disk.format("one")), "definition": xml(disk.format("two"))}
    found = await handed.told(connection, facts)
    assert [(part.name, part.device) for part in found] == [
        ("/srv/one.img", "block/vda"), ("/srv/two.img", "domain"),
    ]  # fmt: skip
    same = await handed.told(connection, facts | {"definition": facts["xml"]})
    assert {part.device for part in same} == {"block/vda"}


async def test_both_definitions_are_told_of(connection: Connection) -> None:
    """As the source says it, in Prepare's parameters, and in both cookies."""
    serial = "<serial type='file'><source path='/etc/x'/></serial>"
    of_serial = [(Kind.OTHER, "/etc/x")]
    for key in ("xml", "definition"):
        [part] = await handed.told(connection, {key: xml(serial)})
        assert names([part]) == of_serial
        assert part.place.endswith(" of its definition") == (key == "definition")
    for key in ("destination_xml", "persistent_xml"):
        found = await handed.planned(connection, plan(parameters={key: xml(serial)}), frozenset())
        assert names(found) == of_serial
    found = await handed.planned(connection, plan(cookie=cookie(xml(serial))), frozenset())
    assert names(found) == of_serial
    assert names(await handed.defined(connection, cookie(xml(serial)), frozenset())) == of_serial
    assert not await handed.defined(connection, b"", frozenset())


async def test_emulators_are_libvirts_own(
    connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the one that libvirt would be asked about at TEST, which it then runs."""
    link, qemu = tmp_path / "link", tmp_path / "qemu"
    qemu.touch()
    link.symlink_to(qemu)  # it could lead elsewhere when it is run
    offered = CAPABILITIES.replace("/usr/bin/qemu", str(qemu))
    monkeypatch.setattr(connection.raw, "getCapabilities", lambda: offered)
    emulator = f"<emulator>{link}</emulator>"
    [found] = await handed.told(connection, {"xml": xml(emulator)})
    assert found.name == str(link)
    [found] = await handed.told(
        connection, {"xml": xml("<emulator>/usr/bin/../bin/kvm</emulator>")}
    )
    for path in (str(qemu), "/usr/bin/kvm"):
        emulator = f"<emulator>{path}</emulator>"
        assert not await handed.told(connection, {"xml": xml(emulator), "emulator": path})
    found = await handed.told(connection, {"emulator": "/root/evil"})
    assert names(found) == [(Kind.PROGRAM, "/root/evil")]


async def test_disks_that_are_copied_are_told_of(connection: Connection) -> None:
    disk = "<disk type='file'><source file='/srv/a'/><target dev='vda'/></disk>"
    flags = int(FLAGS | Flag.NON_SHARED_DISK)
    sent = {"migrate_disks": ["vda", "vdb"]}
    found = await handed.planned(
        connection, plan(xml(disk), flags=flags, parameters=sent), frozenset()
    )
    copied = [part for part in found if part.kind is Kind.COPIED]
    assert copied == [
        HostPart(kind=Kind.COPIED, name=name, place="migrate_disks", device=f"block/{disk}")
        for name, disk in (("/srv/a", "vda"), ("vdb", "vdb"))
    ]


async def test_what_cannot_be_read_is_refused(connection: Connection) -> None:
    bad = "<hostdev mode='subsystem' type='pci'><source><address bus='x'/></source></hostdev>"
    with pytest.raises(HypervisorError, match="cannot be read"):
        await handed.planned(connection, plan(xml(bad)), frozenset())


async def test_elements_without_end_are_refused(connection: Connection) -> None:
    deep = "<a>" * 5000 + "</a>" * 5000
    with pytest.raises(HypervisorError):
        await handed.told(connection, {"xml": xml(deep)})


@pytest.mark.parametrize(
    ("path", "here"),
    [
        ("/usr/bin/kvm", True),
        ("/usr/libexec/qemu-kvm", True),
        ("/usr/bin/qemu-system-aarch64", True),
        ("/usr/bin/../../srv/kvm", False),
        ("/usr/bin/bash", False),
        ("/usr/local/bin/kvm", False),
        ("/srv/usr/bin/kvm", False),
        ("/usr/bin/kvm\n", False),
    ],
)
async def test_an_emulator_of_a_package_is_here_anyway(
    connection: Connection, path: str, *, here: bool
) -> None:
    assert names(await handed.told(connection, {"emulator": path})) == (
        [] if here else [(Kind.PROGRAM, path)]
    )


def test_what_users_write_into_metadata_is_theirs() -> None:
    """libvirt keeps it as it is, and no parser's reading of it matters."""
    metadata = (
        "<metadata><?note x?><!-- mine --><m:a xmlns:m='urn:m' m:b='c'>d<m:e/></m:a></metadata>"
    )
    handed.check_plan(plan(xml().replace("<devices>", f"{metadata}<devices>")), DOMAIN)


async def test_a_volume_is_no_news_at_test(connection: Connection) -> None:
    """Where this host's pool has no such volume yet, as before each copy of a disk."""
    disk = (
        "<disk type='volume' device='disk'><source pool='default' volume='x.raw'/>"
        "<target dev='vda'/></disk>"
    )
    [part] = await handed.told(connection, {"xml": xml(disk)})
    assert (part.kind, part.device) == (Kind.IMAGE, "block/vda")
