"""What is written durably is on the disk, and so is its name, when the call returns."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import entourage
from entourage import durable

SOURCES = Path(entourage.__file__).parent


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was synced, as they were then."""
    found: list[str] = []

    def fsync(descriptor: int) -> None:
        found.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def scratch(name: str) -> bool:
    return name.startswith(".file.")


@pytest.mark.parametrize("write", [durable.write, durable.make])
def test_a_file_and_then_its_name(
    tmp_path: Path, synced: list[str], write: Callable[[Path, bytes], None]
) -> None:
    write(tmp_path / "file", b"x")
    content, name = synced
    assert scratch(content)
    assert name == tmp_path.name
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_names(tmp_path: Path, synced: list[str]) -> None:
    durable.make_directory(tmp_path / "partial")
    durable.rename(tmp_path / "partial", tmp_path / "whole")
    (tmp_path / "whole" / "claim").touch()
    durable.remove(tmp_path / "whole" / "claim")
    durable.remove(tmp_path / "whole" / "claim")
    assert synced == [tmp_path.name, tmp_path.name, "whole", "whole"]
    assert list(tmp_path.iterdir()) == [tmp_path / "whole"]


def test_what_was_written_by_another(tmp_path: Path, synced: list[str]) -> None:
    (tmp_path / "memory").touch()
    durable.sync_file(tmp_path / "memory")
    assert synced == ["memory"]


@pytest.mark.parametrize("part", ["checkpoint", "hypervisors/saved", "cli", "devices/saved.py"])
def test_all_of_a_save_is_written_by_it(part: str) -> None:
    where = SOURCES / part
    files = sorted(where.rglob("*.py")) if where.is_dir() else [where]
    assert files
    assert [path.name for path in files if "fsync" in path.read_text(encoding="utf-8")] == []
