"""Cordons of a campaign that does not begin; the hosts are stand-ins for ssh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from entourage.cli import campaigns
from entourage.cli.fleeting import Wanted
from entourage.errors import EntourageError, UsageError
from entourage.fleet.remote import Remote
from entourage.fleet.store import Spec
from entourage.fleet.values import Limits, Plan
from entourage.settings.model import PathSettings, Settings


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What hosts were told; none of them answers a question."""
    told: list[str] = []

    async def put_up(_remote: Remote, host: str, name: str, _reason: str) -> None:
        told.append(f"cordon {host} {name}")

    async def lift(_remote: Remote, host: str, name: str) -> None:
        told.append(f"uncordon {host} {name}")

    async def room(_remote: Remote, host: str) -> Any:
        raise EntourageError("it does not answer", host=host)

    for method, stand_in in (("cordon", put_up), ("uncordon", lift), ("room", room)):
        monkeypatch.setattr(Remote, method, stand_in)
    return told


@pytest.fixture
def asked(tmp_path: Path) -> campaigns.Asked:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[[host]]\nname = "a"\n[[host]]\nname = "b"\n')
    paths = PathSettings(state=str(tmp_path / "state"), run=str(tmp_path / "run"))
    return campaigns.Asked(Settings(paths=paths), fleet, "")


def evacuate(asked: campaigns.Asked, host: str, name: str) -> int:
    return campaigns.evacuate(
        asked, Wanted(sources=[host]), Limits(), name=name, plan=None, dry_run=False
    )


def test_a_host_that_nobody_knows_is_told_before_any_is_cordoned(
    asked: campaigns.Asked, said: list[str]
) -> None:
    with pytest.raises(UsageError, match="typo is no host of the fleet"):
        evacuate(asked, "typo", "ev")
    assert said == []


def test_a_name_that_is_taken_leaves_the_others_cordon(
    asked: campaigns.Asked, said: list[str]
) -> None:
    with asked.store().planning() as planning:
        planning.add("ev", Spec(plan=Plan()))
    with pytest.raises(UsageError, match="there is a campaign 'ev' already"):
        evacuate(asked, "a", "ev")
    assert said == []


def test_what_does_not_begin_lifts_what_it_has_put_up(
    asked: campaigns.Asked, said: list[str]
) -> None:
    with pytest.raises(EntourageError, match="it does not answer"):
        evacuate(asked, "a", "ev")
    assert said == ["cordon a ev", "uncordon a ev"]
