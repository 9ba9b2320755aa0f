"""All machines, one after the other: what fails keeps the others from nothing, Ctrl-C does."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entourage.__main__ import main
from entourage.checkpoint import everything
from entourage.cli import domains, migrate, saving_all
from entourage.cli.migrate import Ended
from entourage.errors import HypervisorError
from entourage.hypervisors.saved import claim, storage
from entourage.settings.model import PathSettings, Settings
from tests.unit.cli.test_migrate import FakeMigration, interruptible, playing
from tests.unit.hypervisors.saved.test_manifest import disk, saved
from tests.unit.report.test_samples import success

__all__ = ["disk", "saved"]
HOLDER = "1" * 32


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(paths=PathSettings(state=str(tmp_path / "state"), run=str(tmp_path / "run")))


@pytest.fixture
def attempted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was saved; web2 is interrupted with Ctrl-C, and web0 cannot be."""
    names: list[str] = []

    async def running(_settings: Settings) -> list[str]:
        return ["web0", "web1", "web2", "web3", "web4"]

    async def request(_settings: Settings, name: str, _where: str, **_more: Any) -> Any:
        names.append(name)

    async def attempt(make: Callable[[Any], Any], **_how: Any) -> Ended:
        await make(None)
        return {"web0": Ended(3, interrupted=False), "web2": Ended(4, interrupted=True)}.get(
            names[-1], Ended(0, interrupted=False)
        )

    monkeypatch.setattr(everything, "running", running)
    monkeypatch.setattr(saving_all, "save_request", request)
    monkeypatch.setattr(saving_all, "attempt", attempt)
    return names


def all_saved(settings: Settings, directory: str, *, at_shutdown: bool = False) -> int:
    return saving_all.save_all(
        settings,
        directory,
        at_shutdown=at_shutdown,
        patience=1,
        tool=None,
        json=False,
        quiet=True,
    )


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was shut down, on a host that goes down."""
    names: list[str] = []

    async def switch_off(_settings: Settings, name: str, **_how: Any) -> None:
        names.append(name)

    async def going_down() -> bool:
        return True

    monkeypatch.setattr(domains, "switch_off", switch_off)
    monkeypatch.setattr(everything, "is_going_down", going_down)
    return names


def test_ctrl_c_ends_all_of_them(
    settings: Settings, attempted: list[str], ended: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    where = everything.usual_place(settings)
    assert all_saved(settings, where, at_shutdown=True) == 4
    assert (attempted, ended) == (["web0", "web1", "web2"], ["web0"])
    assert capsys.readouterr().err.endswith("interrupted; not saved: web3, web4\n")


def test_without_a_place_all_are_shut_down(
    settings: Settings,
    attempted: list[str],
    ended: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Else the host's going down would end them like a power cut."""
    assert all_saved(settings, str(tmp_path / "none"), at_shutdown=True) == 4
    assert (attempted, ended) == ([], ["web0", "web1", "web2", "web3", "web4"])
    assert "there is no directory" in capsys.readouterr().err


def test_storage_that_hangs_is_not_waited_for(
    settings: Settings,
    attempted: list[str],
    ended: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hangs = threading.Event()

    def never(*_args: object) -> None:
        hangs.wait()

    monkeypatch.setattr(storage, "_ANSWERS_WITHIN", 0.05)
    for work in ("make_place", "to_restore"):
        monkeypatch.setattr(everything, work, never)
    assert all_saved(settings, "/srv/hangs", at_shutdown=True) == 4
    assert (attempted, len(ended)) == ([], 5)
    assert "the storage of /srv/hangs does not answer" in capsys.readouterr().err
    with pytest.raises(HypervisorError, match="does not answer"):
        saving_all.restore_all(settings, "/srv/hangs", tool=None, json=False, quiet=True)
    hangs.set()


def test_only_the_usual_place_is_made_and_tidied(
    settings: Settings, attempted: list[str], saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["save", "--all", f"{saved.parent}/none"]) == 2
    assert "there is no directory" in capsys.readouterr().err
    claim.take(saved, HOLDER)
    claim.confirm(saved, HOLDER)
    named = saved.rename(saved.with_name("web1"))
    all_saved(settings, str(named.parent))
    assert named.is_dir()
    usual = Path(everything.usual_place(settings), "web1")
    named.rename(usual.parent.mkdir(parents=True) or usual)
    all_saved(settings, str(usual.parent))
    assert not usual.exists()
    assert attempted == ["web0", "web1", "web2"] * 2


def test_what_cannot_be_tidied_keeps_the_others_from_nothing(
    settings: Settings, attempted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    claims = Path(everything.usual_place(settings), "web1", "claim.json")
    claims.parent.mkdir(parents=True)
    claims.write_bytes(b"{")
    all_saved(settings, str(claims.parents[1]))
    assert "claim.json is damaged" in capsys.readouterr().err
    assert attempted == ["web0", "web1", "web2"]


@pytest.mark.parametrize("goes_back", [True, False])
def test_who_has_interrupted_a_migration_is_known(
    goes_back: bool,  # noqa: FBT001 - a case's
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def as_good_as_done(migration: FakeMigration) -> Any:
        migration.handed_over = True
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)
        return success()[-1]

    class Engine(FakeMigration):
        play = interruptible(signal.SIGINT) if goes_back else as_good_as_done
        requests: list[Any] = []  # noqa: RUF012 - of this test only

    monkeypatch.setattr(migrate, "Migration", Engine)

    class Asked:
        live = False

    async def make_request(_note: Callable[[str], None]) -> Any:
        return Asked()

    def attempt() -> Ended:
        return asyncio.run(
            migrate.attempt(make_request, json=False, verbose=False, quiet=True, dry_run=False)
        )

    assert attempt() == Ended(4 if goes_back else 0, interrupted=True)
    Engine.play = playing(success())
    assert attempt() == Ended(0, interrupted=False)


def test_what_is_shown_can_be_typed(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = saved.rename(saved.with_name("of web1"))
    assert main(["saved", str(moved.parent)]) == 0
    assert f"entourage restore '{moved}'" in capsys.readouterr().out
