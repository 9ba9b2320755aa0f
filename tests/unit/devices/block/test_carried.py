"""Disks that the hypervisor copies by itself, and read-only ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from entourage.devices.tool.controller import Tooled
from entourage.hosts.allowed import Allowed
from entourage.settings.model import AgentSettings
from tests.unit.devices.test_harness import CARRIES, CARRIES_RAW, MIB, Move, qcow2, raw, two_kernels


async def test_a_carrier_that_copies_disks_is_told_which(tmp_path: Path, srv: Path) -> None:
    image = raw(srv / "web1.img", size=8 * MIB, data=b"x" * 4096)
    move = Move(tmp_path, image)
    move.hosts.machine.copies = move.hosts.incoming.copies = CARRIES
    made = move.hosts.mkdir(srv) / "web1.img"
    await move.through()
    assert made.stat().st_size == 8 * MIB
    assert move.hosts.machine.calls == [("carry", "block/disk0")]
    assert move.hosts.incoming.calls == []


async def test_a_carrier_of_raw_disks_takes_a_raw_one(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "web1.img", size=8 * MIB, data=b"x" * 4096))
    move.hosts.machine.copies = move.hosts.incoming.copies = CARRIES_RAW
    made = move.hosts.mkdir(srv) / "web1.img"
    await move.through()
    assert made.stat().st_size == 8 * MIB
    assert move.hosts.machine.calls == [("carry", "block/disk0")]


async def test_a_carrier_of_raw_disks_takes_no_qcow2(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, qcow2(srv / "web1.qcow2"), format="qcow2")
    move.hosts.machine.copies = move.hosts.incoming.copies = CARRIES_RAW
    move.hosts.mkdir(srv)
    [refusal] = await move.test()
    assert "qcow2 image cannot be copied" in refusal.reason
    assert refusal.no_way  # an external tool may have a way


@pytest.mark.parametrize("believes", [True, False])
async def test_what_a_tool_provides_must_be_allowed_there(
    tmp_path: Path, srv: Path, *, believes: bool
) -> None:
    """Or else PREPARE would find that the target's machine may not be built with it."""
    move = Move(tmp_path, qcow2(srv / "web1.qcow2"), format="qcow2")
    move.hosts.machine.copies = move.hosts.incoming.copies = CARRIES_RAW
    move.hosts.mkdir(srv)
    move.hosts.there.allowed = Allowed(
        AgentSettings(image_directories=("/",), believe_shared=believes)
    )
    found = await move.hosts.test(Tooled(move.controller, "/bin/true"))
    assert [refusal.host for refusal in found] == ([] if believes else ["b"])
    assert all("agent.believe-shared" in refusal.remedy for refusal in found)


async def test_a_carrier_of_raw_disks_takes_a_read_only_one_and_the_source_keeps_it(
    tmp_path: Path, srv: Path
) -> None:
    image = raw(srv / "cd.iso", size=8 * MIB, data=b"x" * 4096)
    move = Move(tmp_path, image, readonly=True)
    move.hosts.machine.copies = move.hosts.incoming.copies = CARRIES_RAW
    made = move.hosts.mkdir(srv) / "cd.iso"
    await move.through()
    assert made.stat().st_size == 8 * MIB
    assert move.hosts.machine.calls == [("carry", "block/disk0")]
    await move.let_go()
    assert image.exists()


async def test_a_read_only_one_that_is_there_is_used_and_another_one_is_not_overwritten(
    tmp_path: Path, srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_kernels(monkeypatch)
    image = raw(srv / "cd.iso", size=MIB, data=b"x" * 4096)
    move = Move(tmp_path, image, readonly=True)
    move.hosts.machine.copies = move.hosts.incoming.copies = CARRIES_RAW
    there = raw(move.hosts.mkdir(srv) / "cd.iso", size=MIB, data=b"x" * 4096)
    await move.through()
    assert move.hosts.machine.calls == []
    raw(there, size=MIB, data=b"y" * 4096)
    refusal = await move.refusal()
    assert "is there already" in refusal.reason


async def test_no_carrier_of_all_disks_copies_a_read_only_medium(tmp_path: Path, srv: Path) -> None:
    image = raw(srv / "cd.iso", size=8 * MIB, data=b"x" * 4096)
    move = Move(tmp_path, image, readonly=True)
    move.hosts.machine.copies = move.hosts.incoming.copies = CARRIES
    move.hosts.mkdir(srv)
    [refusal] = await move.test()
    assert "cannot copy a read-only medium" in refusal.reason


@pytest.mark.parametrize("readonly", [True, False])
async def test_what_a_carrier_has_against_a_disk_is_all_that_is_said(
    tmp_path: Path, srv: Path, *, readonly: bool
) -> None:
    move = Move(tmp_path, raw(srv / "x.img", size=MIB), readonly=readonly)
    move.hosts.machine.copies = move.hosts.incoming.copies = CARRIES
    move.hosts.machine.objects_to = frozenset({"disk0"})
    move.hosts.mkdir(srv)
    [refusal] = await move.test()
    assert (refusal.reason, refusal.remedy) == ("the fake cannot", "ask another")


async def test_a_carrier_has_nothing_to_say_of_a_disk_that_stays(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "x.img", size=MIB))
    move.hosts.machine.copies = move.hosts.incoming.copies = CARRIES
    move.hosts.machine.objects_to = frozenset({"disk0"})
    move.hosts.share(srv)
    assert await move.test() == []


async def test_a_medium_that_may_be_left_out_is(
    tmp_path: Path, srv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_kernels(monkeypatch)
    move = Move(tmp_path, raw(srv / "cd.iso", size=MIB), readonly=True)
    move.hosts.machine.copies = move.hosts.incoming.copies = CARRIES
    move.hosts.machine.leaves_out = frozenset({"disk0"})
    there = move.hosts.mkdir(srv) / "cd.iso"
    assert await move.test() == []
    assert move.controller.left_out
    assert "the drive is empty there" in str(move.hosts.events)
    raw(there, size=MIB)
    assert await move.test() == []
    assert not move.controller.left_out


async def test_what_a_mirror_has_against_a_disk_is_said(tmp_path: Path, srv: Path) -> None:
    move = Move(tmp_path, raw(srv / "x.img", size=MIB))
    move.hosts.machine.objects_to = frozenset({"disk0"})
    move.hosts.mkdir(srv)
    [refusal] = await move.test()
    assert refusal.reason == "the fake cannot"
