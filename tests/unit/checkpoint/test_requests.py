"""What is asked of a migration when a machine is saved or restored; and what is shown of saves."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from entourage.checkpoint import requests
from entourage.checkpoint.requests import restore_request, save_request
from entourage.checkpoint.saved import saves
from entourage.errors import UsageError
from entourage.hypervisors.registry import counterpart, elsewhere, in_directory
from entourage.hypervisors.saved import claim
from entourage.hypervisors.saved import manifest as manifests
from entourage.settings.model import PathSettings, Settings
from tests.unit.hypervisors.saved.test_manifest import disk, saved

__all__ = ["disk", "saved"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(paths=PathSettings(state=str(tmp_path / "state"), run=str(tmp_path / "run")))


def known(monkeypatch: pytest.MonkeyPatch, hypervisor: str) -> None:
    async def found(*_asked: object) -> tuple[object, object]:
        return SimpleNamespace(name=hypervisor), None

    monkeypatch.setattr(requests, "known", found)


async def test_a_save_goes_to_a_directory(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(monkeypatch, "qemu")
    (tmp_path / "link").symlink_to(tmp_path)
    request = await save_request(settings, "web1", f"{tmp_path}/link/x")
    where = f"{tmp_path}/x"
    assert (request.route.host, request.route.agentless) == (where, f"save:{where}")
    assert (request.live, request.settings.migration.tls) == (False, False)
    assert in_directory(f"save:{where}") == where
    assert (elsewhere("qemu"), in_directory("qemu+ssh://b/system")) == (None, "")
    assert counterpart(f"save:{where}") == "qemu"


@pytest.mark.parametrize(("hypervisor", "tool"), [("xen", "xl"), ("qemu:///system", "virsh")])
async def test_what_cannot_be_saved_yet_is_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, hypervisor: str, tool: str
) -> None:
    known(monkeypatch, hypervisor)
    with pytest.raises(UsageError, match="only Entourage's own machines") as told:
        await save_request(settings, "web1", "/srv/x")
    assert f"{tool} save" in told.value.remedy


@pytest.mark.parametrize("directory", ["/", "/srv/..", ""])
async def test_where_nothing_can_be_saved(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    known(monkeypatch, "qemu")
    monkeypatch.chdir("/")
    with pytest.raises(UsageError, match="no directory to save in"):
        await save_request(settings, "web1", directory)


def test_a_copy_needs_a_word(settings: Settings, saved: Path, tmp_path: Path) -> None:
    request = restore_request(settings, str(saved), paused=True)
    assert (request.domain, request.paused) == ("web1", True)
    assert request.connect == f"save:{saved}"
    copy = tmp_path / "copy"
    copy.mkdir(mode=0o700)
    for path in saved.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
        (copy / path.name).chmod(0o600)
    with pytest.raises(UsageError, match="is a copy") as told:
        restore_request(settings, str(copy))
    assert "--only-copy" in told.value.remedy
    assert restore_request(settings, str(copy), only_copy=True).domain == "web1"
    [first, second] = asyncio.run(saves(settings, [str(tmp_path)]))
    assert (first.directory, len(first.against)) == (str(copy), 1)
    assert (second.directory, second.against) == (str(saved), ())


def test_what_speaks_against_a_save_is_shown(settings: Settings, saved: Path) -> None:
    manifest = manifests.read_manifest(saved)
    os.utime(manifest.disks[0].path)
    claim.take(saved, "2" * 32)
    [shown] = asyncio.run(saves(settings, [str(saved)]))
    assert len(shown.against) == 2
    assert "is being restored" in shown.against[0]
    assert "was written to" in shown.against[1]
    (saved / "manifest.json").write_bytes(b"{")
    [shown] = asyncio.run(saves(settings, [str(saved)]))
    assert (shown.domain, len(shown.against)) == ("", 1)
    with pytest.raises(UsageError, match="no directory"):
        asyncio.run(saves(settings, [f"{saved}/none"]))
