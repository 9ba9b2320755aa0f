"""Images of sizes that QEMU does not take past the page cache start, move, and keep their size."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import Literal

import msgspec
import pytest

from entourage.domain import Block
from tests.e2e.qemu.hosts import Hosts, Move, a_domain, leftovers_in_qemu, run

pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
    pytest.mark.timeout(60),
]
SECTORS = 2049 * 512


@pytest.mark.parametrize(
    "cache",
    ["auto", *(pytest.param(one, marks=pytest.mark.matrix) for one in ("none", "writeback"))],
)
@pytest.mark.parametrize("kind", ["sparse", "full", "cd", "half-a-sector", "qcow2"])
async def test_a_size_that_is_no_multiple_of_a_page(
    hosts: Hosts, kind: str, cache: Literal["auto", "none", "writeback"]
) -> None:
    path = hosts.a.disk("odd")
    size = {"cd": 501 * 2048, "half-a-sector": SECTORS + 100}.get(kind, SECTORS)
    if kind == "qcow2":
        await run("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size))
    else:
        path.touch()
        os.truncate(path, size)
    if kind in {"full", "cd", "half-a-sector"}:
        path.write_bytes(os.urandom(size))
    odd = Block(id="odd", path=str(path), cache=cache)
    odd = {
        "cd": msgspec.structs.replace(odd, model="ide-cd", readonly=True),
        "qcow2": msgspec.structs.replace(odd, format="qcow2"),
    }.get(kind, odd)
    domain = a_domain(hosts.a, tpm=False)
    domain = await hosts.start(msgspec.structs.replace(domain, block=(*domain.block, odd)))
    move = Move(hosts, domain)
    there = hosts.b.disk("odd")
    if kind == "qcow2":
        await run("qemu-img", "create", "-q", "-f", "qcow2", str(there), str(size))
    await move.up_to("disarm")
    await move.finish()
    await hosts.b.runs(domain)
    if kind != "qcow2":
        # QEMU's sectors are whole ones; the file itself never grows on the source.
        assert path.stat().st_size == size
        assert there.stat().st_size in {size, -(-size // 512) * 512}
        assert there.read_bytes()[:size] == path.read_bytes()
    assert await leftovers_in_qemu(hosts.b, domain) == []


async def test_an_empty_disk(hosts: Hosts) -> None:
    hosts.a.disk("odd").touch()
    domain = a_domain(hosts.a, tpm=False)
    odd = Block(id="odd", path=str(hosts.a.disk("odd")))
    domain = await hosts.start(msgspec.structs.replace(domain, block=(*domain.block, odd)))
    move = Move(hosts, domain)
    await move.up_to("land")
    await asyncio.gather(move.abort(), move.undo_target())
