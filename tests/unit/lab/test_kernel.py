"""The lab takes a kernel and its modules from wherever a release's packages have them."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from lab.kernel import Kernel, KernelError, merge_lib, modules

PLACES = {
    "Debian 12": ("boot/vmlinuz-6.1", "lib/modules/6.1"),
    "Debian 13": ("boot/vmlinuz-6.1", "usr/lib/modules/6.1"),
    "beside its modules": ("usr/lib/modules/6.1/vmlinuz", "usr/lib/modules/6.1"),
}


def write(path: Path, content: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("name", PLACES)
def test_a_kernel_is_found(tmp_path: Path, name: str) -> None:
    image, folder = PLACES[name]
    write(tmp_path / image)
    write(tmp_path / folder / "modules.order")
    found = Kernel.found(tmp_path)
    assert found == Kernel(tmp_path / image, "6.1", tmp_path / folder)
    merge_lib(tmp_path)
    for place in ("lib", "usr/lib"):  # whichever depmod looks into
        assert (tmp_path / place / "modules/6.1/modules.order").exists()


def test_a_kernel_without_modules_is_none(tmp_path: Path) -> None:
    write(tmp_path / "boot/vmlinuz-6.1")
    with pytest.raises(KernelError):
        Kernel.found(tmp_path)


def test_modules_come_unpacked_and_with_what_they_need(tmp_path: Path) -> None:
    write(tmp_path / "kernel/block.ko", b"block")
    write(tmp_path / "kernel/virtio-ring.ko.xz", lzma.compress(b"ring"))
    write(tmp_path / "kernel/virtio.ko.gz", gzip.compress(b"virtio"))
    write(tmp_path / "kernel/other.ko", b"other")
    write(
        tmp_path / "modules.dep",
        b"kernel/virtio.ko.gz: kernel/virtio-ring.ko.xz\nkernel/virtio-ring.ko.xz:\n"
        b"kernel/block.ko: kernel/virtio.ko.gz kernel/virtio-ring.ko.xz\nkernel/other.ko:\n",
    )
    found = modules(tmp_path, ["block", "built_in"])
    assert {module.path: module.read() for module in found} == {
        "kernel/block.ko": b"block",
        "kernel/virtio-ring.ko": b"ring",
        "kernel/virtio.ko": b"virtio",
    }
    assert found[0].needs == ("kernel/virtio.ko", "kernel/virtio-ring.ko")
    assert [module.path for module in modules(tmp_path, ["virtio_ring"])] == [
        "kernel/virtio-ring.ko"
    ]
