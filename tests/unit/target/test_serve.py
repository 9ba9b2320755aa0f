"""How many agents one source may have at once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from entourage.errors import UsageError
from entourage.hosts.slots import slot
from entourage.settings.model import AgentSettings, PathSettings, Settings
from entourage.target import serve as module
from entourage.target.caller import Caller


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    paths = PathSettings(run=str(tmp_path / "run"))
    return msgspec.structs.replace(Settings(), paths=paths, agent=AgentSettings(links=1))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Caller]:
    callers: list[Caller] = []

    async def serve(_settings: Settings, caller: Caller) -> None:
        callers.append(caller)

    monkeypatch.setattr(module, "_serve", serve)
    return callers


async def test_a_source_has_no_more_links_than_it_may(
    settings: Settings, served: list[Caller]
) -> None:
    with slot(Path(settings.paths.run, "links"), "a", 1):
        with pytest.raises(UsageError, match="there are 1 links of the source") as caught:
            await module.serve(settings, Caller(source="a"))
        assert "agent.links" in caught.value.remedy
        for other in (Caller(source="c"), Caller(), Caller(source="a", proxy=True)):
            await module.serve(settings, other)
    await module.serve(settings, Caller(source="a"))
    assert len(served) == 4


async def test_where_there_is_no_room_for_a_lock(settings: Settings, served: list[Caller]) -> None:
    Path(settings.paths.run).write_text("a file")
    with pytest.raises(UsageError, match="run: file exists"):
        await module.serve(settings, Caller())
    assert served == []
