"""Huge pages, as a kernel tells of them; the files here are written by hand."""

from __future__ import annotations

import os
from pathlib import Path

from entourage.hosts.hugepages import free_pages, pages_of

SMAPS = """\
7f0000000000-7f0040000000 rw-s 00000000 00:0f 1 /dev/hugepages/libvirt/qemu/1-web1/x (deleted)
Size:            1048576 kB
KernelPageSize:     2048 kB
MMUPageSize:        2048 kB
Rss:                   0 kB
7f0080000000-7f00c0000000 rw-s 00000000 00:0f 2 /dev/hugepages1G/x (deleted)
Size:            2097152 kB
KernelPageSize:  1048576 kB
7f1000000000-7f1000100000 rw-p 00000000 00:00 0
Size:               1024 kB
KernelPageSize:        4 kB
"""


def process(processes: Path, pid: int, *, huge: int) -> None:
    directory = processes / str(pid)
    directory.mkdir(parents=True)
    (directory / "status").write_text(f"Name:\tqemu\nHugetlbPages:\t {huge} kB\n")
    (directory / "smaps").write_text(SMAPS)


def test_what_a_process_has_mapped_counts_whether_it_was_touched_or_not(tmp_path: Path) -> None:
    process(tmp_path, 7, huge=2048)
    assert pages_of(7, tmp_path) == {2048: 512, 1048576: 2}


def test_a_process_without_any(tmp_path: Path) -> None:
    process(tmp_path, 7, huge=0)
    assert pages_of(7, tmp_path) == {}
    assert pages_of(8, tmp_path) == {}
    assert pages_of(os.getpid()) == {}


def test_what_is_reserved_is_not_left(tmp_path: Path) -> None:
    for size, free, reserved in ((2048, 10, 4), (1048576, 1, 3)):
        pool = tmp_path / f"hugepages-{size}kB"
        pool.mkdir()
        (pool / "free_hugepages").write_text(f"{free}\n")
        (pool / "resv_hugepages").write_text(f"{reserved}\n")
    assert free_pages(tmp_path) == {2048: 6, 1048576: 0}
    assert free_pages(tmp_path / "none") == {}
