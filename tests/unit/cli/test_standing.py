from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from entourage.__main__ import main
from entourage.cli import standing
from entourage.handover.values import Finding
from entourage.recovery import Recovered, Standing

UUID = "2f1c3c7e-9a4b-4d0e-8b57-0c6f5f0a9d11"
STANDING = Standing(
    domain="web1",
    uuid=UUID,
    migration="4f0e",
    role="source",
    record="armed",
    settled=False,
    peer="b",
    doing="migrates web1 (process 7)",
    guest="running",
    meaning="a migration to b was begun",
    remedy="wait",
    began="2026-11-28 14:02:11+01:00",
    changed="2026-11-28 14:03:00+01:00",
)
RECOVERED = Recovered(
    domain="web1",
    migration="4f0e",
    role="source",
    peer="b",
    before="armed",
    after="back",
    settled=True,
    start="xl create FILE",
    findings=(Finding.CAME_BACK.value,),
)


def test_status_lines() -> None:
    assert standing.status_lines([]) == ["nothing is under way or in doubt here"]
    assert standing.status_lines([STANDING]) == [
        "web1: a migration to b was begun",
        "  migration  4f0e to b, ARMED; the guest here: running",
        "  since      2026-11-28 14:02:11",
        "  under way  migrates web1 (process 7)",
        "  remedy     wait",
    ]


def test_what_is_settled_has_the_date_of_that() -> None:
    settled = msgspec.structs.replace(STANDING, settled=True, doing="", remedy="")
    assert standing.status_lines([settled])[2:] == [
        "  since      2026-11-28 14:02:11, settled 2026-11-28 14:03:00"
    ]


def test_recovered_lines() -> None:
    assert standing.recovered_lines([], dry_run=False) == ["nothing is in doubt here"]
    assert standing.recovered_lines([RECOVERED], dry_run=False) == [
        "web1: settled",
        "  migration  4f0e to b, ARMED -> BACK",
        "  found      it runs here, as before",
    ]
    doubt = msgspec.structs.replace(
        RECOVERED,
        role="target",
        before="go",
        after="go",
        settled=False,
        findings=("new-one", "crashed-here"),
        problems=("x",),
    )
    assert standing.recovered_lines([doubt], dry_run=False) == [
        "web1: still in doubt",
        "  migration  4f0e from b, GO",
        "  found      new-one",
        "  found      it was handed over, and its machine died: `xl create FILE`",
        "  problem    x",
    ]
    assert standing.recovered_lines([doubt], dry_run=True)[0] == "web1: is to be settled"
    unclean = msgspec.structs.replace(RECOVERED, settled=False)
    assert "not cleaned up" in standing.recovered_lines([unclean], dry_run=False)[0]
    assert standing.exit_status([]) == standing.exit_status([RECOVERED]) == 0
    assert standing.exit_status([RECOVERED, unclean]) == 5
    assert standing.exit_status([RECOVERED, unclean, doubt]) == 6


def test_every_finding_has_its_sentence() -> None:
    for finding in Finding:
        one = msgspec.structs.replace(RECOVERED, findings=(finding.value,))
        assert finding.value not in standing.recovered_lines([one], dry_run=False)[2]


def test_status_and_recover(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    async def status(_settings: object, *, everything: bool) -> list[Standing]:
        asked.append(everything)
        return [STANDING]

    async def recover(
        _settings: object, name: str | None, *, dry_run: bool, target_is_fenced: bool
    ) -> list[Recovered]:
        asked.append((name, dry_run, target_is_fenced))
        return [RECOVERED]

    monkeypatch.setattr(standing.recovery, "status", status)
    monkeypatch.setattr(standing.recovery, "recover", recover)
    assert main(["status", "-a"]) == 0
    assert "under way" in capsys.readouterr().out
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["meaning"] == "a migration to b was begun"
    assert main(["recover"]) == 0
    assert main(["recover", "web1", "--target-is-fenced"]) == 0
    assert main(["recover", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("web1: ") == 3
    assert main(["recover", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["after"] == "back"
    assert asked == [
        True,
        False,
        (None, False, False),
        ("web1", False, True),
        (None, True, False),
        (None, False, False),
    ]
