"""Where files lie."""

from __future__ import annotations

from pathlib import Path

from entourage.hypervisors.files import is_on_local_storage


def test_a_disk_of_this_host_is_its_own(tmp_path: Path) -> None:
    assert is_on_local_storage(tmp_path)
    assert is_on_local_storage(tmp_path / "not-there")


def test_what_is_not_known_to_be_local_is_not() -> None:
    assert not is_on_local_storage(Path("/proc/self"))
