"""Another machine that is made of a libvirt domain's save: its XML, and its file of memory."""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import pytest

from entourage.domain import Domain, Net
from entourage.errors import HypervisorError
from entourage.hosts.resources import MemoryLedger, undo_rows
from entourage.hosts.turns import turned
from entourage.hypervisors.libvirt import another, saveimage
from entourage.hypervisors.libvirt.another import made_for, only_one_can_have, own_place, renamed
from entourage.hypervisors.libvirt.domainxml import parse
from entourage.hypervisors.libvirt.image_copy import ImageCopy

FIRST = "5b6e6d0e-0000-4000-8000-000000000001"
UUID = "5b6e6d0e-0000-4000-8000-000000000002"
GENID = "5b6e6d0e-0000-4000-8000-000000000003"
MAC, OWN_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"
OTHER = Domain(
    name="web2", uuid=UUID, memory=1 << 28, net=(Net(id="net0", bridge="br1", mac=OWN_MAC),)
)
SERIAL = "<serial type='file'><source path='/var/log/web1.log'/></serial>"


def xml(devices: str = "", os: str = "") -> str:
    return (
        f"<domain type='kvm'><name>web1</name><uuid>{FIRST}</uuid><genid>{GENID}</genid>"
        f"<memory unit='b'>268435456</memory><sysinfo type='smbios'><system>"
        f"<entry name='uuid'>{FIRST}</entry></system></sysinfo>"
        f"<os><type machine='q35'>hvm</type>{os}</os><devices><interface type='bridge'>"
        f"<mac address='{MAC}'/><source bridge='br1'/></interface>{devices}</devices></domain>"
    )


def test_nothing_of_the_first_ones_identity_is_left() -> None:
    nvram = "<nvram template='/t.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>"
    text = renamed(xml(SERIAL, nvram), OTHER)
    for gone in (FIRST, GENID, MAC, "web1"):
        assert gone not in text
    root = parse(text)
    assert (root.findtext("name"), root.findtext("uuid")) == ("web2", UUID)
    assert root.findtext("sysinfo/system/entry") == UUID
    assert root.findtext("os/nvram") == "/var/lib/libvirt/qemu/nvram/web2_VARS.fd"
    assert list(made_for(text)) == ["/var/log/web2.log", root.findtext("os/nvram")]


def test_what_libvirt_makes_for_each_domain_it_makes_anew() -> None:
    """Its guest agent's channel, which nearly every domain has."""
    path = "/var/lib/libvirt/qemu/channel/target/domain-1-web1/org.qemu.guest_agent.0"
    text = renamed(
        xml(
            f"<channel type='unix'><source mode='bind' path='{path}'/>"
            "<target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        ),
        OTHER,
    )
    source = parse(text).find("devices/channel/source")
    assert source is not None
    assert source.attrib == {"mode": "bind"}
    assert not list(made_for(text))


OWN = "/var/lib/libvirt/qemu"


@pytest.mark.parametrize(
    "line",
    [
        "<serial type='unix'><source mode='bind' path='{}'/></serial>",
        "<serial type='file'><source path='{}'/></serial>",
        "<serial type='pty'><log file='{}'/></serial>",
        "<channel type='unix'><source mode='bind' path='{}'/><target type='guestfwd'/></channel>",
        "<channel type='unix'><log file='{}'/><target type='virtio'/></channel>",
        "<channel type='file'><source path='{}'/><target type='virtio'/></channel>",
    ],
)
def test_what_libvirt_finds_no_place_for_is_called_as_the_other_one_is(line: str) -> None:
    """Also where it is in a directory of libvirt's: without a place it makes none of it."""
    text = renamed(xml(line.format(f"{OWN}/web1.line")), OTHER)
    assert f"{OWN}/web2.line" in text
    assert list(made_for(text)) == [f"{OWN}/web2.line"]
    assert f"{OWN}/web1.line" not in text
    [(reason, _)] = only_one_can_have(xml(line.format(f"{OWN}/line")), OTHER)
    assert f"the place {OWN}/line" in reason


def test_variables_whose_place_is_an_element() -> None:
    nvram = "<nvram type='file'><source file='/n/web1.fd'/></nvram>"
    text = renamed(xml(os=nvram), OTHER)
    source = parse(text).find("os/nvram/source")
    assert source is not None
    assert list(made_for(text)) == [source.get("file")]
    assert source.get("file") == "/var/lib/libvirt/qemu/nvram/web2_VARS.fd"


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        ("", ""),
        ("<graphics type='vnc' port='-1' autoport='yes'/>", ""),
        ("<serial type='pty'><source path='/dev/pts/1'/></serial>", ""),
        ("<channel type='unix'><source mode='bind'/></channel>", ""),
        (SERIAL, ""),
        ("<serial type='file'><source path='/x.log'/></serial>", "the place /x.log"),
        ("<serial type='tcp'><source mode='bind' service='77'/></serial>", "at port 77"),
        ("<serial type='pty'><log file='/x.log'/></serial>", "the place /x.log"),
        ("<graphics type='vnc' port='5901'/>", "at port 5901"),
        ("<graphics type='spice' socket='/x'/>", "at /x"),
        ("<graphics type='vnc' port='-1'><listen type='socket' socket='/x'/></graphics>", "at /x"),
        (f"<graphics type='vnc' socket='{OWN}/domain-1-web1/vnc.sock'/>", ""),
        (f"<graphics type='vnc' socket='{OWN}/web1.vnc'/>", f"at {OWN}/web1.vnc"),
        ("<graphics type='spice' port='-1' tlsPort='5902'/>", "at port 5902"),
        ("<hostdev type='usb'/>", "a hostdev of type usb"),
        ("<memory model='nvdimm'><source><path>/x.img</path></source></memory>", "/x.img"),
        ("<serial type='dev'><source path='/dev/ttyS0'/></serial>", "connected to /dev/ttyS0"),
        ("<serial type='pipe'><source path='/run/p'/></serial>", "connected to /run/p"),
        (
            "<channel type='unix'><source mode='connect' path='/run/web1.sock'/></channel>",
            "connected to /run/web1.sock",
        ),
        (
            (
                "<rng model='virtio'><backend model='egd' type='unix'>"
                "<source mode='connect' path='/run/egd'/></backend></rng>"
            ),
            "connected to /run/egd",
        ),
        ("<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>", ""),
        (
            (
                "<channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/"
                "1-web1/org.qemu.guest_agent.0'/><target type='virtio'/></channel>"
            ),
            "",
        ),
        ("<vsock><cid auto='no' address='3'/></vsock>", "the number 3"),
        ("<vsock><cid auto='yes' address='3'/></vsock>", ""),
        ("<disk type='network'><source protocol='rbd'/></disk>", "a disk on the network"),
    ],
)
def test_what_there_cannot_be_two_of(devices: str, says: str) -> None:
    found = list(only_one_can_have(xml(devices), OTHER))
    assert [says in reason for reason, _ in found] == ([True] if says else [])
    assert all(remedy for _, remedy in found)


def test_what_is_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(another, "VARIABLES", str(tmp_path))
    (tmp_path / "web2_VARS.fd").touch()
    (tmp_path / "web2.log").touch()
    line = f"<serial type='file'><source path='{tmp_path}/web1.log'/></serial>"
    found = only_one_can_have(xml(line, "<nvram>/n</nvram>"), OTHER)
    assert ["already" in reason for reason, _ in found] == [True, True]


def test_a_place_of_its_own() -> None:
    assert own_place("/web1/web1.log", "web1", "web2") == "/web1/web2.log"
    assert own_place("/web1/x.log", "web1", "web2") == "/web1/x.log"


# The file of memory

MEMORY = b"QEVM" + bytes(range(256)) * 5000


def image(path: Path, *, room: int = 4096, cookie: bytes = b"", form: int = 0) -> Path:
    data = b"<domain/>\0"
    at = len(data) if cookie else 0
    data = (data + cookie).ljust(room, b"\0")
    head = struct.pack("=16s5I56s", b"LibvirtQemudSave", 2, len(data), 1, form, at, b"")
    path.write_bytes(head + data + MEMORY)
    return path


def parts(path: Path) -> tuple[bytes, bytes, bytes]:
    """XML, cookie and memory of such a file, as libvirt reads it."""
    content = path.read_bytes()
    _, _, size, _, _, at, _ = struct.unpack("=16s5I56s", content[:92])
    data = content[92 : 92 + size]
    cookie = data[at:].partition(b"\0")[0] if at else b""
    return data[: at or None].partition(b"\0")[0], cookie, content[92 + size :]


@pytest.mark.parametrize("cookie", [b"", b"<cookie/>\0"])
@pytest.mark.parametrize("longer", [0, 10_000])
def test_it_is_copied_with_another_xml(tmp_path: Path, cookie: bytes, longer: int) -> None:
    text = "<domain>" + "x" * longer + "</domain>"
    into = tmp_path / "copy"
    saveimage.copy(image(tmp_path / "memory", cookie=cookie), into, text)
    assert parts(into) == (text.encode(), cookie.removesuffix(b"\0"), MEMORY)
    assert into.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        saveimage.copy(tmp_path / "memory", into, text)


@pytest.mark.parametrize(("form", "known"), [(0, True), (1, False), (6, False)])
def test_it_is_known_what_an_unfinished_one_turns_into(
    tmp_path: Path,
    form: int,
    known: bool,  # noqa: FBT001 - a case
) -> None:
    """One that is compressed is not QEMU's stream, and a sparse one has no order."""
    whole = image(tmp_path / "memory", form=form).read_bytes()
    meanwhile = whole.replace(b"LibvirtQemudSave", b"LibvirtQemudPart")
    assert turned(meanwhile, saveimage.TURNS) == (whole if known else None)
    assert turned(whole, saveimage.TURNS) is None


@pytest.mark.parametrize(
    ("at", "said"),
    [(0, b"LibvirtQemudPart"), (16, b"\3\0\0\0"), (20, b"\xff" * 4), (32, b"\xff" * 4)],
)
def test_what_is_none_of_libvirts_is_not_copied(tmp_path: Path, at: int, said: bytes) -> None:
    content = bytearray(image(tmp_path / "memory").read_bytes())
    content[at : at + len(said)] = said
    (tmp_path / "memory").write_bytes(content)
    with pytest.raises(HypervisorError, match="none of libvirt's"):
        saveimage.copy(tmp_path / "memory", tmp_path / "copy", "<domain/>")


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    for size in (20, 100):
        (tmp_path / "memory").write_bytes(image(tmp_path / "x").read_bytes()[:size])
        with pytest.raises(HypervisorError, match="none of libvirt's"):
            saveimage.copy(tmp_path / "memory", tmp_path / f"copy{size}", "<domain/>")


def test_memory_whose_places_are_counted_from_the_beginning_stays_there(tmp_path: Path) -> None:
    file = image(tmp_path / "memory", form=6)
    saveimage.copy(file, tmp_path / "copy", "<domain></domain>")
    assert (tmp_path / "copy").stat().st_size == file.stat().st_size
    with pytest.raises(HypervisorError, match="has no room"):
        saveimage.copy(file, tmp_path / "other", "x" * 5000)


async def test_a_copy_is_written_down_before_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    file = image(tmp_path / "saved" / "memory")
    ledger = MemoryLedger()
    copy = ImageCopy(file, UUID, ledger)
    where = await copy.make("<domain></domain>")
    saved = str(tmp_path / "saved")
    assert ledger.rows == [("scratch", {"path": str(where), "beside": saved})]
    assert where == tmp_path / f"saved.{UUID}.memory"
    with pytest.raises(HypervisorError, match="cannot be copied"):
        await ImageCopy(file, UUID, ledger).make("<domain></domain>")
    await copy.remove()
    await copy.remove()
    assert not where.exists()


async def test_a_copy_on_storage_that_is_not_mounted_is_not_taken_for_removed(
    tmp_path: Path,
) -> None:
    """All of the guest's secrets are in it."""
    (tmp_path / "saved").mkdir()
    ledger = MemoryLedger()
    where = await ImageCopy(image(tmp_path / "saved" / "memory"), UUID, ledger).make("<domain/>")
    away = tmp_path / "not mounted"
    away.mkdir()
    for name in ("saved", where.name):
        (tmp_path / name).rename(away / name)
    [problem] = await undo_rows(ledger.rows)
    assert "whether" in problem
    assert "mount its storage" in problem
    for name in ("saved", where.name):
        (away / name).rename(tmp_path / name)
    assert await undo_rows(ledger.rows) == []
    assert not where.exists()


def test_a_copy_is_given_up_where_it_is(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(HypervisorError, match="given up"):
        saveimage.copy(image(tmp_path / "memory"), tmp_path / "copy", "<domain/>", stop)
