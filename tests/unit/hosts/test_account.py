"""A user that programs run as."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from entourage.errors import HypervisorError
from entourage.hosts import account
from entourage.hosts.account import Account, Wanted

USER = Account("somebody", 7850, 7850, (7850, 7860))
as_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root becomes another user"
)


@pytest.fixture
def folder() -> Generator[Path]:
    """A directory that everybody may pass through, as pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="account-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def test_a_user_is_found_with_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    me = pwd.getpwuid(os.getuid())
    found = Account.find(me.pw_name)
    assert found is not None
    assert (found.uid, found.gid) == (me.pw_uid, me.pw_gid)
    assert me.pw_gid in found.groups
    assert Account.find("nobody-of-that-name") is None
    monkeypatch.setattr(account, "_group_of_device", {"/dev/kvm": 993, "/dev/root": 0}.get)
    found = Account.find("nobody", devices=("/dev/kvm", "/dev/root"))
    assert found is not None
    assert 993 in found.groups
    assert 0 not in found.groups


@as_root
async def test_a_program_has_nothing_of_roots() -> None:
    process = await asyncio.create_subprocess_exec(
        *USER.command(), "cat", "/proc/self/status", stdout=asyncio.subprocess.PIPE
    )
    stdout, _ = await process.communicate()
    status = dict(line.split(":\t", 1) for line in stdout.decode().splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["7850"] * 4
    assert status["Gid"].split() == ["7850"] * 4
    assert status["Groups"].split() == ["7850", "7860"]
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"


@as_root
async def test_what_is_denied_is_what_the_kernel_denies(folder: Path) -> None:
    def made(name: str, mode: int, owner: int = 0, group: int = 0) -> str:
        path = folder / name
        path.touch()
        os.chown(path, owner, group)
        path.chmod(mode)
        return str(path)

    may = [
        Wanted(made("readable", 0o644), "r"),
        Wanted(made("own", 0o600, 7850), "w"),
        Wanted(made("the group's ; $(x)", 0o660, 0, 7860), "w"),
        Wanted(str(folder), "x"),
    ]
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    may_not = [
        Wanted(may[0].path, "w"),
        Wanted(made("secret", 0o600), "r"),
        Wanted(made("root's group", 0o660), "w"),
        Wanted(made("closed/open", 0o666), "w"),
        Wanted(str(closed), "x"),
        Wanted(str(folder / "nothing"), "r"),
    ]
    assert await USER.denied([*may, *may_not]) == may_not
    assert await USER.denied([]) == []


async def test_without_setpriv_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HypervisorError, match="not installed"):
        await USER.denied([Wanted("/", "x")])
