"""A disk of a machine that is saved: it stays and is sealed, or it is copied."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import msgspec
import pytest

from entourage.devices import saved
from entourage.devices.base import Options
from entourage.devices.block import images
from entourage.devices.block.controller import BlockController, Placement
from entourage.devices.block.images import MARGIN, Image, NewImage
from entourage.devices.block.requests import GiveRoom, Make, Open
from entourage.devices.block.space import Fit, Fitting
from entourage.devices.net import NetController
from entourage.devices.registry import controller_class
from entourage.devices.saved import SavedBlock, SavedNet
from entourage.devices.tpm import TpmController
from entourage.domain import Block, Domain, External, Net, Tpm
from entourage.errors import HypervisorError
from entourage.hypervisors.base import DiskCopy, Export
from entourage.hypervisors.saved import manifest
from entourage.hypervisors.saved.another import AnotherMachine
from entourage.hypervisors.saved.copies import Belonged, CopiesOut
from entourage.hypervisors.saved.machine import SavedMachine
from entourage.hypervisors.seams import Changed
from entourage.hypervisors.values import Since
from entourage.settings.model import Settings
from entourage.steps import Refusal

UUID = "8053c674-0c34-4fbd-9f88-29821824241c"
SIZE = 1 << 20


def test_which_class_has_another_end() -> None:
    disk, nic, tpm = Block(id="d0", path="/srv/d0"), Net(id="n0", bridge="br0"), Tpm(id="t0")
    assert controller_class(disk, saved=True) is SavedBlock
    assert controller_class(nic, saved=True) is SavedNet
    assert controller_class(tpm, saved=True) is TpmController
    assert controller_class(disk) is BlockController
    assert controller_class(nic) is NetController
    assert controller_class(External(id="e0", type="fpga"), saved=True) is None


def test_a_migration_does_not_wait_for_it() -> None:
    """What only saves need is not imported for what is none."""
    program = (
        "import sys, entourage.device_steps, entourage.target.controllers;"
        "sys.exit('entourage.devices.saved' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("sealed", "copied"), [(True, False), (False, False), (True, True)])
async def test_what_stays_must_be_seen_to_change(
    monkeypatch: pytest.MonkeyPatch,
    sealed: bool,  # noqa: FBT001 - a case's
    copied: bool,  # noqa: FBT001 - same
) -> None:
    async def nothing(*_: object) -> Sequence[Refusal]:
        return ()

    monkeypatch.setattr(BlockController, "test", nothing)
    copies = frozenset({"disk0"} if copied else ())
    here: Any = SimpleNamespace(source="a", options=Options(sealed=sealed, copies=copies))
    found = await SavedBlock(Block(id="disk0", path="/dev/null")).test(here)
    assert bool(found) == (sealed and not copied)
    for refusal in found:
        assert "is no file" in refusal.reason
        assert "--disks=copy" in refusal.remedy


@pytest.mark.parametrize(
    ("restored", "kind", "onto"),
    [(True, "device", True), (True, "none", False), (False, "device", False)],
)
async def test_only_a_device_that_was_named_is_written_over(
    monkeypatch: pytest.MonkeyPatch,
    restored: bool,  # noqa: FBT001 - a case's
    kind: str,
    onto: bool,  # noqa: FBT001 - same
) -> None:
    asked: list[bool] = []

    async def copy(*_: object, onto: bool) -> list[Refusal]:
        asked.append(onto)
        return []

    async def inspected(*_: object) -> list[str]:
        return ["image"]

    async def look(*_: object) -> list[Any]:
        return [SimpleNamespace(kind=kind)]

    monkeypatch.setattr(BlockController, "_copy", copy)
    monkeypatch.setattr(images, "inspect", inspected)
    machine: Any = SavedMachine.__new__(SavedMachine) if restored else object()
    if restored:
        machine._copies = CopiesOut()
    here: Any = SimpleNamespace(
        source="a",
        machine=machine,
        options=Options(copies=frozenset({"disk0"}), disks={"disk0": "/dev/vg/x"}),
        blockers=(),
        peer=look,
    )
    controller = SavedBlock(Block(id="disk0", path="/srv/x"))
    monkeypatch.setattr(controller, "_clash", Mock(return_value=None))
    assert await controller.test(here) == []
    assert asked == [onto]


class Knows:
    """What QEMU knows of a disk since a checkpoint."""

    def __init__(self, changed: Changed | None) -> None:
        self._changed = changed

    async def changed(self, disk: Block, mark: str) -> Changed | None:
        assert (disk.id, mark) == ("disk0", "entourage-1")
        return self._changed


@pytest.mark.parametrize(
    ("changed", "earlier", "against"),
    [
        (Changed(65536, SIZE), SIZE, ""),
        (None, SIZE, "is not known"),
        (Changed(0, SIZE), 2 * SIZE, "it had 2 MiB then"),
        (Changed(0, 2 * SIZE), SIZE, "its guest sees 2 MiB"),
    ],
)
async def test_only_what_was_written_since_a_checkpoint(
    tmp_path: Path, changed: Changed | None, earlier: int, against: str
) -> None:
    """It is an overlay of that one's image, and needs room for the changes alone."""
    below = tmp_path / "mon" / "disks" / "disk0"
    below.parent.mkdir(parents=True)
    with below.open("wb") as file:
        file.truncate(earlier)
    copied = {"disk0": "raw"}
    since = Since(directory=str(tmp_path / "mon"), sha256="", mark="entourage-1", images=copied)
    here: Any = SimpleNamespace(
        source="a",
        options=Options(copies=frozenset(copied), since=since),
        machine=SimpleNamespace(mirroring=Knows(changed)),
    )
    image = Image(
        path=str(below), kind="file", format="raw", virtual_size=SIZE, allocated=100 << 20
    )
    controller: Any = SavedBlock(Block(id="disk0", path=str(below)))
    found = await controller._objections(here, image)
    assert against in "".join(one.reason for one in found)
    assert bool(found) == bool(against)
    if found:
        assert "--since" in found[0].remedy
        return
    made = await controller._new_image(here, image, "/x/disks/disk0", None)
    assert (made.format, made.backing, made.backing_format) == ("qcow2", str(below), "raw")
    assert made.room <= 65536 + MARGIN
    # The whole of another disk is copied.
    other: Any = SavedBlock(Block(id="disk1", path=str(below)))
    assert await other._objections(here, image) == []
    assert (await other._new_image(here, image, "/x/disks/disk1", None)).backing is None


@pytest.mark.parametrize("hangs", [False, True])
async def test_what_finds_no_room_gives_back_what_it_has_taken(
    monkeypatch: pytest.MonkeyPatch,
    hangs: bool,  # noqa: FBT001 - a case's
) -> None:
    """Before the guest goes on, whose disks may be on the same storage; not for long."""
    monkeypatch.setattr(saved, "_GIVES_ROOM_WITHIN", 0.05)
    asked: list[object] = []

    async def peer(request: object, _reply: object) -> None:
        asked.append(request)
        if hangs:
            await asyncio.Event().wait()

    async def complete(_disk: Block) -> None:
        raise HypervisorError("No space left on device")

    since = Since(directory="/x", sha256="", mark="entourage-1", images={"disk0": "raw"})
    here: Any = SimpleNamespace(
        options=Options(since=since),
        machine=SimpleNamespace(mirroring=SimpleNamespace(complete=complete)),
        peer=peer,
    )
    for disk in ("disk0", "disk1"):  # the other one is copied whole, as its guest runs
        controller: Any = SavedBlock(Block(id=disk, path="/srv/x"))
        controller._mirroring = True
        with pytest.raises(HypervisorError, match="No space left"):
            await controller.transfer(here)
    assert asked == [GiveRoom()]


async def test_an_image_in_a_save_that_is_given_up_is_emptied(tmp_path: Path) -> None:
    domain = Domain(name="web1", memory=1 << 26, block=(Block(id="disk0", path="/srv/x"),))
    there: Any = SimpleNamespace(incoming=SimpleNamespace(is_save=True), domain=domain)
    controller: Any = SavedBlock(domain.block[0])
    assert await controller.transfer_there(there, {"type": "give-room"}) is None  # none was made
    image = manifest.partial(tmp_path / "tue", domain) / "disks" / "disk0"
    image.parent.mkdir(parents=True)
    image.write_bytes(bytes(4096))
    path = str(tmp_path / "tue" / "disks" / "disk0")
    controller._made = NewImage(path=path, format="raw", size=SIZE, room=0, preallocated=False)
    await controller.transfer_there(there, {"type": "give-room"})
    assert image.stat().st_size == 0


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
async def test_what_is_restored_of_changes_is_as_the_disk_was(
    tmp_path: Path, image_format: str
) -> None:
    """Of its own format, made as the image that the others are built on."""
    (path := tmp_path / "x").touch()
    common: Any = {"path": str(path), "kind": "file", "virtual_size": SIZE, "allocated": 0}
    whole = Image(format=image_format, options={"cluster_size": "131072"}, **common)
    overlay = Image(format="raw", options={"cluster_size": "65536"}, **common)
    controller: Any = SavedBlock(Block(id="disk0", path=str(path), format=image_format))  # type: ignore[arg-type]
    controller._whole = whole
    machine: Any = SavedMachine.__new__(SavedMachine)
    here: Any = SimpleNamespace(machine=machine, options=Options())
    made = await controller._new_image(here, overlay, str(path), None)
    assert made.format == image_format
    assert made.options == (whole.options if image_format == "qcow2" else {})


@pytest.mark.parametrize(
    ("placement", "belonged", "warned"),
    [
        (Placement.MAKE, Belonged(0o660, "qemu", "qemu"), ""),
        (Placement.MAKE, Belonged(0o600, "", ""), ""),
        (Placement.MAKE, Belonged(0o644, "alice", "root"), "alice:root, and is to be root's"),
        (Placement.ONTO, Belonged(0o644, "alice", "alice"), ""),
    ],
)
def test_a_restored_image_is_whose_it_was(
    tmp_path: Path, placement: Placement, belonged: Belonged, warned: str
) -> None:
    said: list[Any] = []
    here: Any = SimpleNamespace(settings=Settings(), target="a", emit=said.append, now=lambda: 1.0)
    controller: Any = SavedBlock(Block(id="disk0", path="/srv/x"))
    controller.placement, controller._new = placement, new(tmp_path)
    saved: Any = SimpleNamespace(belonged={"block/disk0": belonged}.get)
    controller._give_back(here, saved)
    given = Belonged(controller._new.mode, controller._new.owner, controller._new.group)
    assert given == (belonged if placement is Placement.MAKE else Belonged(0o600, "", ""))
    assert warned in "".join(one.message for one in said)
    assert bool(said) == bool(warned)


class Exports:
    """Takes note of what is exported."""

    def __init__(self) -> None:
        self.exported: list[str] = []

    async def export(self, disk: Block) -> Export:
        self.exported.append(disk.label)
        return Export(host="", port=0, name=disk.id, socket="/run/x")


def there(directory: Path) -> Any:
    """A save in a directory, of a domain with one disk."""
    disk = Block(id="disk0", path=f"{directory}/disks/disk0")
    domain = Domain(name="web1", uuid=UUID, memory=1 << 20, block=(disk,))
    incoming = SimpleNamespace(is_save=True, exports=Exports())
    return SimpleNamespace(host="a", domain=domain, incoming=incoming, space={})


def new(directory: Path, size: int = SIZE) -> NewImage:
    path = f"{directory}/disks/disk0"
    return NewImage(path=path, format="raw", size=size, room=size, preallocated=True)


def fit(directory: Path, size: int) -> Any:
    asked = Fit(new=new(directory, size), onto_device=False, need=DiskCopy.MIRROR)
    return msgspec.to_builtins(asked)


async def test_a_copy_needs_room_beside_memory(tmp_path: Path) -> None:
    far, controller = there(tmp_path / "x"), SavedBlock(Block(id="disk0", path="/srv/x"))
    assert await controller.test_there(far, fit(tmp_path / "x", SIZE)) == Fitting()
    answer = await controller.test_there(far, fit(tmp_path / "x", 1 << 60))
    [refusal] = answer.refusals
    assert "together with memory" in refusal.reason
    assert "another directory" in refusal.remedy


async def test_an_image_is_made_in_the_save_and_taken(tmp_path: Path) -> None:
    directory = tmp_path / "x"
    far, controller = there(directory), SavedBlock(Block(id="disk0", path="/srv/x"))
    disks = tmp_path / f"x.{UUID}.partial" / "disks"
    disks.mkdir(parents=True)
    assert await controller.prepare_there(far, msgspec.to_builtins(Make(new=new(directory))))
    export = await controller.connect_there(far, msgspec.to_builtins(Open()))
    assert export.socket == "/run/x"
    status = await asyncio.to_thread((disks / "disk0").stat)
    assert (status.st_size, stat.S_IMODE(status.st_mode), status.st_blocks) == (SIZE, 0o600, 0)
    assert cast("Exports", far.incoming.exports).exported == ["block/disk0"]


def test_another_guest_uses_the_first_ones_mac_until_it_is_started_again() -> None:
    """Whether somebody has it there, is what the target is asked."""
    nic = Net(id="net0", bridge="br1", mac="52:54:00:00:00:02")
    controller = SavedNet(nic)
    another = Mock(spec=AnotherMachine, **{"first_mac.return_value": "52:54:00:00:00:01"})
    here: Any = SimpleNamespace(machine=another)
    assert controller.mac_on_the_wire(here) == "52:54:00:00:00:01"
    another.first_mac.assert_called_once_with("net/net0")
    here = SimpleNamespace(machine=Mock(spec=SavedMachine))
    assert controller.mac_on_the_wire(here) == nic.mac
