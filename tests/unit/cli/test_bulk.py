"""Several domains at once: what is typed, and what each migration is given."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from entourage.cli import campaigns
from entourage.cli.app import run
from entourage.cli.fleeting import Wanted
from entourage.fleet.fleetfile import HostEntry
from entourage.fleet.values import Limits

FLEET = '[[host]]\nname = "b"\nssh = "root@b.example"\n'


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Wanted, Limits, bool]]:
    """What campaigns would have been begun."""
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(FLEET)
    monkeypatch.setenv("ENTOURAGE_FLEET", str(fleet))
    found: list[tuple[Wanted, Limits, bool]] = []

    def evacuate(_asked: object, wanted: Wanted, limits: Limits, *, dry_run: bool, **_: Any) -> int:
        found.append((wanted, limits, dry_run))
        return 0

    monkeypatch.setattr(campaigns, "evacuate", evacuate)
    return found


def test_all_of_this_host_to_a_host_of_the_fleet(
    begun: list[tuple[Wanted, Limits, bool]],
) -> None:
    assert run(["migrate", "--all", "b", "--net", "br0=br1", "--no-tls", "--at-once", "3"]) == 0
    ((wanted, limits, dry_run),) = begun
    assert wanted.sources == [socket.gethostname()]
    assert wanted.targets == ["b"]
    assert not wanted.patterns
    assert wanted.options == ["--net=br0=br1", "--no-tls"]
    assert (limits.at_once, limits.per_target) == (3, 3)
    assert not dry_run
    assert not wanted.emptied


def test_a_pattern_to_a_host_that_no_fleet_has(begun: list[tuple[Wanted, Limits, bool]]) -> None:
    assert run(["check", "web*", "root@10.0.0.2", "--max-blackout", "300ms"]) == 0
    ((wanted, limits, dry_run),) = begun
    assert wanted.patterns == ("web*",)
    assert wanted.options == ["--max-blackout=300ms"]
    there = HostEntry(name="10.0.0.2", ssh="root@10.0.0.2", from_others="root@10.0.0.2")
    assert there in wanted.besides
    assert limits.at_once == 1
    assert dry_run


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--all", "b", "--json"], "--json: not of several domains"),
        (["web*", "b", "--disk", "disk0=/srv/x"], "--disk: not of several"),
        (["--all", "b", "c"], "DOMAIN beside --all: not of several"),
        (["web*"], "HOST is missing"),
        (["web1"], "HOST is missing"),
        (["web1", "b", "--at-once", "2"], "--at-once is of several"),
        (["--all", "qemu+ssh://b/system"], "several domains move to a host that has Entourage"),
        (["--all", "root@b"], "b is known already"),
        (["--all", "--", "-oProxyCommand=x"], "is no host name"),
        (["--all", "b", "--bandwidth", "much"], "--bandwidth"),
    ],
)
def test_what_cannot_be_meant(
    begun: list[tuple[Wanted, Limits, bool]],
    words: Sequence[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["migrate", *words]) == 2
    assert says in capsys.readouterr().err
    assert not begun


def test_no_order_is_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "a", "--order", "best"]) == 2
    assert "hardest, smallest, largest, name" in capsys.readouterr().err
