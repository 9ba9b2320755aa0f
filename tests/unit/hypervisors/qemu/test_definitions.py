"""Own machines that are off: what a machine that has ended left does not stand for them."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from entourage import durable
from entourage.domain import Domain
from entourage.hypervisors.qemu.definitions import define, undefine
from entourage.hypervisors.qemu.paths import places
from entourage.hypervisors.qemu.record import Running, disown, entries, write_running
from entourage.hypervisors.values import Definition
from entourage.settings.model import PathSettings, Settings

UUID = "a241103c-2c3e-4756-88b0-63e73f621ee2"
OLD = Domain(name="rests", uuid=UUID, memory=1 << 30)
NEW = msgspec.structs.replace(OLD, memory=2 << 30)


@pytest.mark.parametrize("incoming", [True, False])
async def test_what_ended_here_before_is_not_what_arrived(
    tmp_path: Path, *, incoming: bool
) -> None:
    settings = Settings(paths=PathSettings(state=str(tmp_path / "s"), run=str(tmp_path / "r")))
    where = places(settings, UUID, "rests")
    where.run.mkdir(parents=True)
    ended = Running(domain=OLD, pid=os.getpid(), began=1, marker="", incoming=incoming)
    write_running(where, ended)
    await define(settings, Definition(domain=NEW))
    (entry,) = entries(settings)
    assert (entry.domain.memory, entry.owned) == (NEW.memory, True)
    where.run.mkdir(parents=True)
    write_running(where, msgspec.structs.replace(ended, incoming=False))
    await undefine(settings, Definition(domain=NEW))
    assert entries(settings) == []
    assert not where.run.exists()


def test_what_is_gone_already_is_on_the_disk_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has removed it may have been killed before that."""
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync_directory", synced.append)
    settings = Settings(paths=PathSettings(state=str(tmp_path / "s"), run=str(tmp_path / "r")))
    where = places(settings, UUID, "rests")
    where.state.mkdir(parents=True)
    disown(where)
    durable.remove(tmp_path / "gone")
    assert synced == [where.state, tmp_path]
