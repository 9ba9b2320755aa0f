"""``entourage fleet serve``, with a page that ends and a database that is away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from entourage.cli import serving as module
from entourage.cli.campaigns import Asked
from entourage.cli.serving import serve
from entourage.errors import EntourageError
from entourage.settings.model import PathSettings, Settings


class Durable:
    """Runs nothing; what each look for dead controllers comes to is one of a list."""

    def __init__(self, *looks: str) -> None:
        self._looks = list(looks)

    @contextlib.asynccontextmanager
    async def open(self, _runner: object, _owner: str) -> AsyncGenerator[Durable]:
        yield self

    async def take_over(self) -> list[str]:
        if not self._looks:
            os.kill(os.getpid(), signal.SIGTERM)
            return []
        look = self._looks.pop(0)
        if look.startswith("!"):
            raise EntourageError(look)
        return [look] if look else []


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)
    (tmp_path / "fleet.toml").write_text('[[host]]\nname = "a"\n')
    paths = PathSettings(run=f"{tmp_path}/run", state=f"{tmp_path}/state")
    return Asked(Settings(paths=paths), tmp_path / "fleet.toml", "")


def test_it_ends_well_by_a_signal(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Durable", Durable())
    assert serve(asked, f"unix:{tmp_path}/s") == 0


@pytest.mark.parametrize(("fails", "why"), [(True, r": .*no more files"), (False, "")])
def test_a_page_that_ends_by_itself(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool, why: str
) -> None:
    """Whoever started the controller sees that it has failed."""

    @contextlib.asynccontextmanager
    async def ends(_app: object, _socket: object) -> AsyncGenerator[asyncio.Task[None]]:
        async def serves() -> None:
            if fails:
                raise OSError(24, "no more files")

        yield asyncio.create_task(serves())

    monkeypatch.setattr(module, "Durable", Durable(*[""] * 500))
    monkeypatch.setattr(module, "serving", ends)
    with pytest.raises(EntourageError, match=f"the page has ended by itself{why}") as raised:
        serve(asked, f"unix:{tmp_path}/s")
    assert raised.value.remedy
    assert not (tmp_path / "s").exists()


def test_what_is_against_taking_over_is_said_once(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: Any = ("!it is away", "!it is away", "!it is odd", "", "b-0", "!it is away")
    monkeypatch.setattr(module, "Durable", Durable(*looks))
    assert serve(asked, "") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "runs" not in line]
    assert said == [
        "entourage: !it is away",
        "entourage: !it is odd",
        "entourage: the fleet's database answers again",
        "entourage: controller b-0 is dead; its campaigns go on here",
        "entourage: !it is away",
        "entourage: the fleet's database answers again",
    ]
