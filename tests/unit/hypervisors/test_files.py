"""Files that a machine boots from, compared between two hosts."""

from __future__ import annotations

import os
from pathlib import Path

from entourage.domain import Boot, Domain
from entourage.hypervisors.files import boot_problems, digest


async def test_each_case_says_what_to_do(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    domain = Domain(name="web1", memory=1 << 28, boot=Boot(kernel=str(kernel)))
    key = f"sha256:{kernel}"
    [(reason, remedy)] = await boot_problems(domain, "b", {key: "0" * 64})
    assert reason.startswith("there is no")
    assert remedy == "copy it to b"
    kernel.write_text("linux")
    [(reason, remedy)] = await boot_problems(domain, "b", {key: "0" * 64})
    assert "is not the file of that name" in reason
    for unknown in ({}, {key: ""}):
        [(reason, remedy)] = await boot_problems(domain, "b", unknown)
        assert "the source has no" in reason
        assert "put it back there" in remedy
    assert await boot_problems(domain, "b", {key: digest(str(kernel))}) == []


def test_nothing_is_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert digest(str(fifo)) == ""
    assert digest("/dev/zero") == ""
    assert digest("/no\0where") == ""
