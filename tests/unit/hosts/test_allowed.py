"""What of this host a machine that arrives may be made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from entourage.domain import Block, Boot, Device, Domain, Net, Pci, Tpm, Usb
from entourage.hosts import allowed as module
from entourage.hosts.allowed import Allowed
from entourage.hosts.beneath import NotAllowed
from entourage.hosts.parts import HostPart, Kind
from entourage.settings.model import AgentSettings
from tests.unit.hosts.making import make


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in ("mine.raw", "others.raw"):
        (tmp_path / "images" / name).write_bytes(bytes(512))
    (tmp_path / "shadow").write_text("secret")
    return tmp_path / "images"


def allowed(images: Path, **settings: object) -> Allowed:
    paths = {"image_directories": (str(images),), "boot_directories": ()}
    return Allowed(AgentSettings(**(paths | settings)))  # pyright: ignore[reportArgumentType]


def refused(by: Allowed, *devices: Device, boot: Boot | None = None) -> list[str]:
    domain = Domain(name="web1", memory=1 << 28, boot=boot or Boot())
    for device in devices:
        own = {device.device_class: (device,)}
        domain = Domain(name="web1", memory=1 << 28, boot=domain.boot, **own)  # pyright: ignore[reportArgumentType]
    found = by.not_allowed(domain, "b", built=True)
    assert all(refusal.reason for refusal in found)
    return [refusal.device for refusal in found]


def test_a_disk_must_have_been_made_or_proven_shared(images: Path) -> None:
    by = allowed(images)
    disk = Block(id="vda", path=f"{images}/others.raw")
    assert refused(by, disk) == ["block/vda"]
    by.prove(f"{images}/mine.raw")
    assert refused(by, disk) == ["block/vda"]
    mine = Block(id="vda", path=f"{images}/mine.raw")
    assert refused(by, mine) == []
    by.prove(str(images))  # a directory proves nothing of what is in it
    assert refused(by, disk) == ["block/vda"]
    assert refused(allowed(images, believe_shared=True), disk) == []
    (images / "mine.raw").unlink()
    (images / "mine.raw").symlink_to(images / "others.raw")
    assert refused(by, mine) == ["block/vda"]  # it is another file now


def test_what_was_made_is_opened_as_what_it_was_made(images: Path) -> None:
    """A guest could have written the other format's header into it."""
    by = allowed(images)
    make(by, f"{images}/mine.raw")
    assert refused(by, Block(id="vda", path=f"{images}/mine.raw")) == []
    assert refused(by, Block(id="vda", path=f"{images}/mine.raw", format="qcow2")) == ["block/vda"]


def test_what_is_only_read_must_be_proven_as_well(images: Path) -> None:
    by = allowed(images)
    cd = Block(id="cd", path=f"{images}/others.raw", model="ide-cd")
    assert refused(by, cd) == ["block/cd"]  # it could be another guest's
    by.prove(f"{images}/others.raw")
    assert refused(by, cd) == []
    outside = f"{images.parent}/shadow"
    assert refused(by, Block(id="cd", path=outside, readonly=True)) == ["block/cd"]
    (images / "link").symlink_to(outside)
    assert refused(by, Block(id="cd", path=f"{images}/link", readonly=True)) == ["block/cd"]


def test_not_even_believed_outside_of_them(images: Path) -> None:
    disk = Block(id="vda", path=f"{images.parent}/shadow")
    assert refused(allowed(images, believe_shared=True), disk) == ["block/vda"]


def test_firmware_and_kernels(images: Path) -> None:
    secret = Boot(kernel=f"{images.parent}/shadow")
    assert refused(allowed(images), boot=secret) == ["domain"]
    both = allowed(images, boot_directories=(str(images.parent),))
    assert refused(both, boot=secret) == []
    assert refused(allowed(images), boot=Boot(initrd=f"{images}/others.raw")) == ["domain"]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (Usb(id="key", vendor=0x1050, product=0x0407), "usb:1050:0407"),
        (Usb(id="key", model="usb-host"), "usb-host"),
        (Usb(id="key", vendor=1, plug="1-1.4"), "usb:1-1.4"),
        (Pci(id="gpu", host="3b:00.0"), "pci:0000:3b:00.0"),
        (Pci(id="gpu", host="3b:00.0", plug="0000:41:00.0"), "pci:0000:41:00.0"),
        (Pci(id="gpu", model="vfio-pci"), "vfio-pci"),
        (Pci(id="gpu", model="vhost-scsi-pci"), "vhost-scsi-pci"),
        (Tpm(id="tpm", type="external", socket="/run/x.sock"), "/run/x.sock"),
        (Tpm(id="tpm", type="passthrough", path="/dev/tpm0"), "/dev/tpm0"),
        (Tpm(id="tpm", type="passthrough", socket="/run/x", path="/dev/tpm1"), "/dev/tpm1"),
        (Pci(id="gpu", model="u2f-passthru"), "u2f-passthru"),
    ],
)
def test_the_hosts_own_devices_must_be_named(images: Path, device: Device, name: str) -> None:
    assert refused(allowed(images), device) == [device.label]
    assert refused(allowed(images, devices=(name,)), device) == []
    before = allowed(images).not_allowed(
        Domain(name="w", memory=1 << 28, **{device.device_class: (device,)}),  # pyright: ignore[reportArgumentType]
        "b",
        built=False,
    )
    assert [refusal.device for refusal in before] == [device.label]  # at TEST already


def test_emulated_devices_are_nobodys(images: Path) -> None:
    assert refused(allowed(images), Usb(id="tablet", model="usb-tablet")) == []
    assert refused(allowed(images), Pci(id="rng", model="virtio-rng-pci")) == []
    assert refused(allowed(images), Tpm(id="tpm0")) == []


def test_bridges_by_patterns(images: Path) -> None:
    nic = Net(id="net0", bridge="br0")
    assert refused(allowed(images), nic) == []
    assert refused(allowed(images, networks=("guests*",)), nic) == ["net/net0"]
    direct = Net(id="net0", bridge="br0", attach="direct")
    assert refused(allowed(images, networks=("guests*",)), direct) == ["net/net0"]


def test_a_path_with_dots_fits_no_pattern(images: Path) -> None:
    by = allowed(images, devices=("/dev/vg1/*",))
    assert by.has_device("/dev/vg1/web1")
    assert not by.has_device("/dev/vg1/../vda")


def test_images_are_given_to_owners_that_are_allowed(images: Path) -> None:
    by = allowed(images, owners=("root", "libvirt-qemu"))
    assert by.owner("libvirt-qemu") == "libvirt-qemu"
    assert by.owner("alice") == "root"


def test_a_known_content_is_only_read(images: Path) -> None:
    by = allowed(images)
    path = f"{images}/mine.raw"
    by.prove_content(path)
    assert refused(by, Block(id="cd", path=path, readonly=True)) == []
    assert refused(by, Block(id="vda", path=path)) == ["block/vda"]


def test_a_copy_goes_only_onto_what_was_made_or_named(images: Path) -> None:
    by = allowed(images, believe_shared=True)
    path = f"{images}/mine.raw"
    by.prove(path)
    assert not by.may_overwrite(path)  # it is shared: the source's own
    make(by, path)
    assert by.may_overwrite(path)


def test_what_was_made_is_known_by_its_descriptor(images: Path) -> None:
    by, path = allowed(images), f"{images}/mine.raw"
    with Path(path).open("rb") as mine, Path(f"{images}/others.raw").open("rb") as others:
        Path(path).rename(images / "aside.raw")
        Path(path).write_bytes(b"put in its place")
        by.make(path, "raw", mine.fileno())
        assert not by.may_overwrite(path)
        assert by.may_overwrite(path, mine.fileno())
        assert not by.may_overwrite(path, others.fileno())


def test_no_other_file_gets_the_inode_of_what_was_made(images: Path) -> None:
    by, path = allowed(images), images / "mine.raw"
    make(by, str(path))
    for _ in range(64):  # the filesystem's free inodes are used again
        path.unlink()
        path.write_bytes(b"another")
        assert not by.may_overwrite(str(path))


@pytest.mark.parametrize(
    "device",
    [
        Usb(id="x", model="usb-mtp"),
        Usb(id="x", model="usb-host"),
        Usb(id="x", model="u2f-passthru"),
        Pci(id="x", model="vfio-pci"),
        Pci(id="x", model="ivshmem-plain"),
        Pci(id="x", model="a-device-of-next-year"),
    ],
)
def test_an_emulated_device_is_a_known_one(images: Path, device: Usb | Pci) -> None:
    assert refused(allowed(images), device) == [device.label]
    assert refused(allowed(images, devices=(device.model,)), device) == []


@pytest.mark.parametrize(
    "device",
    [
        *(Usb(id="x", model=model) for model in ("usb-tablet", "usb-kbd", "usb-redir")),
        *(Pci(id="x", model=model) for model in ("virtio-rng-pci", "edu", "mdev-hostdev")),
    ],
)
def test_the_usual_ones_are_known(images: Path, device: Usb | Pci) -> None:
    assert refused(allowed(images), device) == []


@pytest.mark.parametrize(
    ("nic", "name"),
    [
        (Net(id="n", bridge="br0"), "br0"),
        (Net(id="n", bridge="virbr0", attach="network", network="lan"), "lan"),
        (Net(id="n", bridge="eth0", attach="direct"), "eth0"),
    ],
)
def test_whatever_a_nic_is_on_must_be_allowed(images: Path, nic: Net, name: str) -> None:
    assert refused(allowed(images, networks=("other",)), nic) == ["net/n"]
    assert refused(allowed(images, networks=(name,)), nic) == []


@pytest.mark.parametrize("ports", [(22, 22), (1000, 49152), (60000, 59999), (0, 70000)])
def test_ports_are_within_those_that_are_allowed(images: Path, ports: tuple[int, int]) -> None:
    with pytest.raises(NotAllowed, match=r"agent\.ports|are allowed here"):
        allowed(images).ports(*ports)
    allowed(images).ports(49152, 49215)


def part(kind: Kind, name: Path, **more: Any) -> HostPart:
    return HostPart(kind=kind, name=str(name), place="x", **more)


def test_who_opens_by_a_path_follows_no_link_of_a_stranger(images: Path) -> None:
    """An image that was proven; what a link of somebody's leads to could change after that."""
    image = images / "mine.raw"
    (images / "inside").symlink_to(image)
    (images.parent / "outside").symlink_to(image)
    (images.parent / "root").symlink_to(images)
    by = allowed(images)
    by.prove(str(image))
    by.part(part(Kind.IMAGE, image))
    for link in (images / "inside", images.parent / "outside", images.parent / "root/mine.raw"):
        with pytest.raises(NotAllowed, match="symbolic link"):
            by.part(part(Kind.IMAGE, link))
    by = allowed(images, image_directories=(f"{images.parent}/root",))
    by.prove(str(image))
    for path in (image, images.parent / "root/mine.raw"):  # the settings' own link is trusted
        by.part(part(Kind.IMAGE, path))


def test_links_among_firmware_are_the_hosts_own(images: Path) -> None:
    (images / "link.fd").symlink_to(images / "mine.raw")
    (images.parent / "evil.fd").symlink_to(images / "mine.raw")
    by = allowed(images, boot_directories=(str(images),))
    by.part(part(Kind.BOOT, images / "link.fd"))
    with pytest.raises(NotAllowed, match="symbolic link"):
        by.part(part(Kind.BOOT, images.parent / "evil.fd"))


def test_what_is_its_own_is_no_link_to_anothers(images: Path) -> None:
    (images / "link.log").symlink_to(images / "others.raw")
    (images.parent / "evil.log").symlink_to(images / "mine.raw")
    by, own = allowed(images), {"beneath": (str(images),)}
    by.part(part(Kind.OTHER, images / "mine.log", **own))
    for link in (images / "link.log", images.parent / "evil.log"):
        with pytest.raises(NotAllowed, match="not among the devices"):
            by.part(part(Kind.OTHER, link, **own))


def test_the_tap_of_a_machine_that_was_built_is_its_own(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its definition, which comes after that, has the same name in it."""
    monkeypatch.setattr(module, "_INTERFACES", images)
    by = allowed(images)
    with pytest.raises(NotAllowed, match="here already"):
        by.part(part(Kind.TAP, Path("mine.raw")))
    by.part(part(Kind.TAP, Path("tap0")))
    (images / "tap0").touch()
    by.part(part(Kind.TAP, Path("tap0")))
    with pytest.raises(NotAllowed, match="here already"):
        allowed(images).part(part(Kind.TAP, Path("tap0")))
