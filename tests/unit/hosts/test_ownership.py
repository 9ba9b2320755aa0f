"""Files that are given to a user for a while."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from entourage.errors import EntourageError
from entourage.hosts.ownership import give, give_back, given
from entourage.hosts.resources import MemoryLedger, undo

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
USER, OTHER = 7850, 7851


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "owners.json"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    made = tmp_path / "image"
    made.touch(mode=0o640)
    os.chown(made, OTHER, OTHER)
    return made


def owner(path: Path) -> int:
    return path.stat().st_uid


def test_given_and_given_back(image: Path, record: Path) -> None:
    give(record, [str(image)], USER)
    assert owner(image) == USER
    assert image.stat().st_gid == OTHER
    assert image.stat().st_mode & 0o777 == 0o640
    assert record.stat().st_mode & 0o777 == 0o600
    assert given(record) == (str(image),)
    give_back(record)
    assert owner(image) == OTHER
    assert not record.exists()
    give_back(record)


def test_the_record_is_there_before_any_file_is_given(
    image: Path, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        assert given(record) == (str(image),)
        raise PermissionError("root is squashed")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fchown", refuse)
        with pytest.raises(PermissionError):
            give(record, [str(image)], USER)
    give_back(record)
    assert owner(image) == OTHER


def test_given_twice_it_still_belongs_to_the_first(image: Path, record: Path) -> None:
    """As after udev has put the owner of a device back."""
    give(record, [str(image)], USER)
    os.chown(image, 0, -1)
    give(record, [str(image)], USER)
    assert owner(image) == USER
    give_back(record)
    assert owner(image) == OTHER


def test_what_was_that_users_already_is_not_written_down(image: Path, record: Path) -> None:
    give(record, [str(image)], OTHER)
    assert not record.exists()


def test_another_file_of_that_name_stays_as_it_is(image: Path, record: Path) -> None:
    give(record, [str(image)], USER)
    image.rename(image.with_name("elsewhere"))
    image.touch()
    os.chown(image, USER, -1)
    give_back(record)
    assert owner(image) == USER


def test_a_file_that_was_given_to_somebody_else_stays_as_it_is(image: Path, record: Path) -> None:
    give(record, [str(image)], USER)
    os.chown(image, 7852, -1)
    give_back(record)
    assert owner(image) == 7852


def test_a_file_that_is_gone_is_no_error(image: Path, record: Path) -> None:
    give(record, [str(image)], USER)
    image.unlink()
    give_back(record)
    assert not record.exists()


def test_a_link_is_given_by_what_it_leads_to(image: Path, record: Path) -> None:
    link = image.with_name("link")
    link.symlink_to(image)
    give(record, [str(link)], USER)
    assert owner(image) == USER
    assert link.lstat().st_uid == 0
    # Swapped for a link later, it is not followed.
    secret = image.with_name("secret")
    secret.touch()
    os.chown(secret, USER, -1)
    image.unlink()
    image.symlink_to(secret)
    with pytest.raises(OSError, match="neither a file nor a device"):
        give_back(record)
    assert owner(secret) == USER
    assert given(record) == (str(image),)


def test_one_that_stays_is_no_reason_to_keep_the_others(image: Path, record: Path) -> None:
    second = image.with_name("second")
    second.touch()
    give(record, [str(image), str(second)], USER)
    image.unlink()
    image.mkdir()
    with pytest.raises(OSError, match="neither a file nor a device"):
        give_back(record)
    assert owner(second) == 0
    assert given(record) == (str(image),)


def test_some_stay_whose_they_are(image: Path, record: Path) -> None:
    give(record, [str(image)], USER)
    give_back(record, except_for=[str(image)])
    assert owner(image) == USER
    assert not record.exists()


def test_a_fifo_is_never_opened(tmp_path: Path, record: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="neither a file nor a device"):
        give(record, [str(tmp_path / "fifo")], USER)


@pytest.mark.parametrize("content", [b"{", b'{"version":2,"files":[]}', b"\xff"])
def test_a_record_that_is_not_understood_is_told_and_kept(record: Path, content: bytes) -> None:
    record.write_bytes(content)
    with pytest.raises(OSError, match=r"owners\.json"):
        give_back(record)
    assert record.read_bytes() == content


async def test_a_ledger_gives_back(image: Path, record: Path) -> None:
    ledger = MemoryLedger()
    ledger.record("owners", path=str(record))
    give(record, [str(image)], USER)
    assert not await ledger.undo()
    assert owner(image) == OTHER


def test_the_records_form(image: Path, record: Path) -> None:
    """Another version reads it after an upgrade."""
    give(record, [str(image)], USER)
    said = msgspec.json.decode(record.read_bytes())
    [file] = said["files"]
    assert said["version"] == 1
    assert sorted(file) == ["before", "given", "id", "path"]


async def test_a_directory_with_a_record_is_not_removed(image: Path, record: Path) -> None:
    """Or nobody would know any more whose the file was."""
    give(record, [str(image)], 7)
    with pytest.raises(EntourageError, match="still to be given back"):
        await undo("dir", {"path": str(record.parent)})
    assert record.exists()
    give_back(record)
    await undo("dir", {"path": str(record.parent)})
    assert not record.parent.exists()
