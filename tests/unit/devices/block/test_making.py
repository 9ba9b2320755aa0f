"""What is made on the target is made in the file that was opened, whatever its name becomes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from entourage.devices.block import making
from entourage.devices.block.images import NewImage
from entourage.errors import DeviceError
from entourage.hosts.allowed import Allowed
from entourage.hosts.programs import qemu_img
from entourage.hosts.resources import MemoryLedger
from entourage.settings.model import AgentSettings

MIB = 1 << 20


def new(path: Path, **more: object) -> NewImage:
    told = {"format": "qcow2", "size": MIB, "room": MIB, "preallocated": False} | more
    return NewImage(path=str(path), **told)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("preallocated", [False, True])
async def test_it_is_made_and_may_be_written_to(
    srv: Path, image_format: str, *, preallocated: bool
) -> None:
    allowed, path = Allowed(AgentSettings(image_directories=(str(srv),))), srv / "a.img"
    image = new(path, format=image_format, preallocated=preallocated)
    assert await making.create(image, "m1", MemoryLedger(), allowed)
    assert allowed.made_as(str(path)) == image_format
    assert allowed.may_overwrite(str(path))
    assert list(srv.iterdir()) == [path]
    assert path.stat().st_blocks * 512 >= (MIB if preallocated else 0)
    if image_format == "qcow2":
        assert struct.unpack_from(">4sI", path.read_bytes())[0] == b"QFI\xfb"
    else:
        assert path.stat().st_size == MIB


async def test_a_file_that_is_put_at_its_name_is_not_written_to(
    srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed, path = Allowed(AgentSettings(image_directories=(str(srv),))), srv / "a.qcow2"
    victim = srv / "victim"
    victim.write_bytes(b"of another guest")

    async def swapped_before(*arguments: str) -> str:
        (scratch,) = srv.glob(".entourage-*")
        scratch.unlink()
        scratch.hardlink_to(victim)
        return await qemu_img(*arguments)

    monkeypatch.setattr(making, "qemu_img", swapped_before)
    await making.create(new(path), "m1", MemoryLedger(), allowed)
    assert victim.read_bytes() == b"of another guest"
    assert not allowed.may_overwrite(str(path))


async def test_what_qemu_img_says_is_of_the_image(
    srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*arguments: str) -> str:
        raise DeviceError(f"qemu-img create failed: {arguments[-2]}: No space left on device")

    monkeypatch.setattr(making, "qemu_img", fails)
    allowed, path = Allowed(AgentSettings(image_directories=(str(srv),))), srv / "a.qcow2"
    with pytest.raises(DeviceError, match=f"failed: {path}: No space"):
        await making.create(new(path), "m1", MemoryLedger(), allowed)
