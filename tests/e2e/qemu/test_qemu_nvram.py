"""A UEFI firmware's variables: made from the template, kept, and moved as a disk is."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from entourage.domain import Boot, Domain
from tests.e2e.qemu.hosts import Hosts, Move, leftovers_in_qemu

CODE, TEMPLATE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
pytestmark = [
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
    pytest.mark.skipif(not CODE.exists(), reason="OVMF is not installed"),
    pytest.mark.timeout(120),
]


async def booted(hosts: Hosts) -> Domain:
    """Start a guest that never comes further than its firmware; that has written variables."""
    variables = hosts.a.disk("nvram")
    boot = Boot(firmware=str(CODE), nvram=str(variables))
    await hosts.a.hypervisor.start(Domain(name="web", memory=256 << 20, accel="tcg", boot=boot))
    # Nothing tells that a firmware has come so far.
    while variables.read_bytes() == TEMPLATE.read_bytes():  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    return await hosts.a.hypervisor.find("web")


async def test_variables_move_with_the_guest(hosts: Hosts) -> None:
    domain = await booted(hosts)
    here, there = hosts.a.disk("nvram"), hosts.b.disk("nvram")
    assert here.stat().st_mode & 0o777 == 0o600
    move = Move(hosts, domain)
    await move.up_to("disarm")
    kept = here.read_bytes()
    assert kept != TEMPLATE.read_bytes()
    # Before anything runs there: it was the mirror, not QEMU as it takes up the guest.
    assert there.read_bytes() == kept
    await move.finish()
    assert await hosts.b.status(domain) == "running"
    assert there.read_bytes() != TEMPLATE.read_bytes()
    assert here.read_bytes() == kept
    assert await leftovers_in_qemu(hosts.b, domain) == []
    # It is not made anew where it is.
    await hosts.b.hypervisor.stop("web", force=True, patience=10)
    kept = there.read_bytes()
    await hosts.b.hypervisor.start(await hosts.b.hypervisor.find("web"))
    assert there.read_bytes() == kept


async def test_variables_stay_where_the_guest_goes_back(hosts: Hosts) -> None:
    domain = await booted(hosts)
    move = Move(hosts, domain)
    await move.up_to("settle")
    await asyncio.gather(move.abort(), move.undo_target())
    assert await hosts.a.status(domain) == "running"
    assert hosts.a.disk("nvram").read_bytes() != TEMPLATE.read_bytes()
    again = Move(hosts, domain)
    await again.up_to("land")
    assert hosts.b.disk("nvram").read_bytes() == hosts.a.disk("nvram").read_bytes()
    await asyncio.gather(again.abort(), again.undo_target())


async def test_a_start_that_fails_leaves_no_variables(hosts: Hosts) -> None:
    variables = hosts.a.disk("nvram")
    boot = Boot(firmware=str(CODE), nvram=str(variables))
    # There are CPU flags that no machine has.
    domain = Domain(name="web", memory=256 << 20, accel="tcg", cpu="max,+entourage", boot=boot)
    with pytest.raises(Exception, match="entourage"):
        await hosts.a.hypervisor.start(domain)
    assert list(hosts.a.root.glob("*.img")) == []
    assert list(hosts.a.root.glob(".entourage*")) == []
