"""Who may restore a save."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.saved import claim

MINE, THEIRS = "1" * 32, "2" * 32


def test_one_is_first(tmp_path: Path) -> None:
    assert claim.objection(tmp_path, MINE) is None
    claim.take(tmp_path, MINE)
    claim.take(tmp_path, MINE)  # as recovery may
    with pytest.raises(HypervisorError, match="has claimed"):
        claim.take(tmp_path, THEIRS)
    assert [path.name for path in tmp_path.iterdir()] == ["claim.json"]


def test_a_claim_is_given_up_by_whose_it_is(tmp_path: Path) -> None:
    claim.take(tmp_path, MINE)
    claim.give_up(tmp_path, THEIRS)
    assert claim.read_claim(tmp_path) is not None
    claim.give_up(tmp_path, MINE)
    claim.give_up(tmp_path, MINE)
    assert claim.read_claim(tmp_path) is None


def test_what_was_restored_stays_so(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="not this host's"):
        claim.confirm(tmp_path, MINE)
    claim.take(tmp_path, MINE)
    with pytest.raises(HypervisorError, match="not this host's"):
        claim.confirm(tmp_path, THEIRS)
    claim.confirm(tmp_path, MINE)
    claim.confirm(tmp_path, MINE)
    claim.give_up(tmp_path, MINE)
    found = claim.read_claim(tmp_path)
    assert found is not None
    assert found.restored
    with pytest.raises(HypervisorError, match="has claimed"):
        claim.take(tmp_path, MINE)


@pytest.mark.parametrize(
    ("holder", "restored", "says", "remedy"),
    [
        (MINE, False, "is being restored", "`entourage recover` here"),
        (THEIRS, False, "is being restored", "`entourage recover` on"),
        (MINE, True, "was restored", "entourage list"),
    ],
)
def test_what_is_said_of_a_claim(
    tmp_path: Path,
    holder: str,
    restored: bool,  # noqa: FBT001 - a column of the table above
    says: str,
    remedy: str,
) -> None:
    claim.take(tmp_path, holder)
    if restored:
        claim.confirm(tmp_path, holder)
    problem = claim.objection(tmp_path, MINE)
    assert problem is not None
    assert says in problem[0]
    assert remedy in problem[1]


def test_a_damaged_claim_may_be_anybodys(tmp_path: Path) -> None:
    (tmp_path / "claim.json").write_bytes(b"{}")
    with pytest.raises(HypervisorError, match="damaged"):
        claim.objection(tmp_path, MINE)
    with pytest.raises(HypervisorError, match="damaged"):
        claim.take(tmp_path, MINE)


@pytest.mark.parametrize("what", ["fifo", "link", "large"])
def test_a_claim_that_is_none_holds_nobody_up(tmp_path: Path, what: str) -> None:
    path = tmp_path / "claim.json"
    match what:
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case _:
            path.write_bytes(b" " * 4096 + b'{"holder": "1", "host": "a"}')
    with pytest.raises(HypervisorError):
        claim.read_claim(tmp_path)
    with pytest.raises(HypervisorError):
        claim.take(tmp_path, MINE)


def test_a_full_disk_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HypervisorError, match="cannot be claimed"):
        claim.take(tmp_path, MINE)
    assert list(tmp_path.iterdir()) == []
