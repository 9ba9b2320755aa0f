"""Which saves are restored at boot, and which are removed then."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from entourage.checkpoint import everything
from entourage.errors import UsageError
from entourage.hypervisors.saved import claim
from entourage.hypervisors.saved import manifest as manifests
from entourage.settings.model import PathSettings, Settings
from tests.unit.hypervisors.saved.test_manifest import disk, saved

__all__ = ["disk", "saved"]
HOLDER = "1" * 32


def another(saved: Path, name: str, **changes: object) -> Path:
    """A save beside it."""
    manifest = manifests.read_manifest(saved)
    shutil.copytree(saved, path := saved.with_name(name))
    changed = msgspec.structs.replace(manifest, **changes)
    (path / "manifest.json").write_bytes(msgspec.json.encode(changed))
    return path


def test_what_nobody_has_restored_in_the_order_of_its_making(saved: Path) -> None:
    first = another(saved, "z", made="2020-01-01T00:00:00+00:00")
    another(saved, "checkpoint", checkpoint=True)
    claim.take(restored := another(saved, "restored"), HOLDER)
    claim.confirm(restored, HOLDER)
    (damaged := another(saved, "damaged")).joinpath("manifest.json").write_bytes(b"{")
    settings = Settings(paths=PathSettings(state=str(saved.parent / "state")))
    assert everything.to_restore(settings, str(saved.parent)) == [damaged, first, saved]
    assert everything.to_restore(settings, everything.usual_place(settings)) == []
    with pytest.raises(UsageError, match="mount what it is on"):
        everything.to_restore(settings, f"{saved.parent}/none")


def test_only_what_was_restored_is_removed(saved: Path) -> None:
    everything.forget(saved)
    claim.take(saved, HOLDER)
    everything.forget(saved)
    assert saved.is_dir()
    claim.confirm(saved, HOLDER)
    everything.forget(saved)
    assert not saved.exists()


def test_where_saves_of_all_are(tmp_path: Path) -> None:
    settings = Settings(paths=PathSettings(state=str(tmp_path)))
    where = everything.usual_place(settings)
    everything.make_place(settings, where)
    assert Path(where).stat().st_mode & 0o777 == 0o700
    for named in ("none", "file"):
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match="there is no directory"):
            everything.make_place(settings, f"{tmp_path}/{named}")
    (tmp_path / "named").mkdir()
    everything.make_place(settings, f"{tmp_path}/named")


async def test_a_systemd_that_does_not_answer_ends_nobodys_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(everything, "_SYSTEMD_RUNS", tmp_path)
    monkeypatch.setattr(everything, "_ANSWERS_WITHIN", 0.2)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for says, goes_down in (("echo stopping", True), ("echo running", False), ("sleep 9", False)):
        (program := tmp_path / "systemctl").write_text(f"#!/bin/sh\nexec {says}\n")
        program.chmod(0o755)
        assert await everything.is_going_down() is goes_down
