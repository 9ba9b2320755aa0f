"""By what a file is known again."""

from __future__ import annotations

from pathlib import Path

import pytest

from entourage.hosts.fileid import file_id


def test_a_file_keeps_its_id_under_another_name(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("something")
    known = file_id(old)
    old.rename(new)
    new.write_text("something else")
    assert file_id(new) == known


def test_another_file_of_that_name_is_another(tmp_path: Path) -> None:
    path, other = tmp_path / "path", tmp_path / "other"
    path.touch()
    other.touch()
    known = file_id(path)
    other.replace(path)
    assert file_id(path) != known


def test_what_gets_the_inode_of_a_deleted_file_is_another(tmp_path: Path) -> None:
    path = tmp_path / "path"
    path.touch()
    known = file_id(path)
    if "." not in known:
        pytest.skip("this filesystem tells no generation")
    path.unlink()
    path.touch()
    assert file_id(path) != known


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic links"):
        file_id(tmp_path / "link")
