"""``entourage attend --check``, ``--off`` and ``--on``, with a daemon's socket and without one."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from entourage.__main__ import main
from entourage.attend import shown
from entourage.attend.shown import AttendedDomain
from entourage.cli.domains import listing
from entourage.events import (
    Finished,
    GuestResumed,
    GuestStopped,
    MigrationStarted,
    SpanDone,
    StepStarted,
)
from entourage.hypervisors.base import DomainState
from entourage.journal.lock import domain_lock
from entourage.settings.model import PathSettings, Settings
from entourage.steps import Step
from tests.unit.attend.standins import answering

UUID = "0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b"
ONE = AttendedDomain(domain="web1", uuid=UUID, devices=("external/dongle",))


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("STATE", "RUN", "LOG"):
        monkeypatch.setenv(f"ENTOURAGE_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.delenv("ENTOURAGE_CONFIG", raising=False)
    return Settings(paths=PathSettings(run=str(tmp_path / "run")))


@pytest.fixture
def running(settings: Settings) -> Generator[None]:
    """A daemon runs, as far as its lock shows."""
    with domain_lock(Path(settings.paths.run), shown.LOCK, "attends migrations"):
        yield


def daemon(tmp_path: Path, answer: bytes) -> list[dict[str, str]]:
    return answering(tmp_path / "run/attend/control", answer)


@pytest.mark.parametrize(
    "words",
    [["web1"], ["--check"], ["--timeline"], ["--check", "--off", "web1"], ["--on", "--off"]],
)
def test_what_cannot_be_meant(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attend", *words]) == 2
    assert "attend takes one of" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--check", "web1"], ["--off"], ["--on", "web1"]])
def test_without_a_daemon(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attend", *words]) == 2
    said = capsys.readouterr().err
    assert "the daemon does not answer" in said
    assert "systemctl start entourage-attend" in said


@pytest.mark.usefixtures("running")
def test_what_is_attended(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    shown.write(settings, ONE)
    assert main(["attend", "--check", "web1"]) == 0
    said = capsys.readouterr().out
    assert "web1: attended" in said
    assert "external/dongle" in said
    assert "20 s" in said
    assert main(["attend", "--check", "--json", UUID]) == 0
    assert json.loads(capsys.readouterr().out)["domain"] == "web1"


def test_where_no_daemon_runs_nothing_is(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where one that was killed has left what it had shown."""
    shown.write(settings, ONE)
    assert main(["attend", "--check", "web1"]) == 1
    assert "not attended: no daemon runs" in capsys.readouterr().out


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("why", ["off", "problem"])
def test_what_is_not(settings: Settings, capsys: pytest.CaptureFixture[str], why: str) -> None:
    one = AttendedDomain(domain="web1", uuid=UUID, off=why == "off", problem="it is broken")
    shown.write(settings, one)
    assert main(["attend", "--check", "web1"]) == 1
    assert "web1: not attended" in capsys.readouterr().out


def test_a_domain_without_devices_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = daemon(tmp_path, b"{}\n")
    assert main(["attend", "--check", "web1"]) == 2
    assert "has no device for Entourage" in capsys.readouterr().err
    assert asked == [{}]


@pytest.mark.parametrize(
    ("words", "asks"),
    [
        (["--off"], {"off": "*"}),
        (["--off", "web1"], {"off": "web1"}),
        (["--on", "web1"], {"on": "web1"}),
    ],
)
def test_it_is_switched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], asks: dict[str, str]
) -> None:
    asked = daemon(tmp_path, b'{"done": "it is done"}\n')
    assert main(["attend", *words]) == 0
    assert capsys.readouterr().out == "it is done\n"
    assert asked == [asks]


def test_what_the_daemon_cannot_do_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon(tmp_path, b'{"refuse": "no space left"}\n')
    assert main(["attend", "--off"]) == 1
    assert "no space left" in capsys.readouterr().err


def test_nobody_to_answer_for(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["attend", "--answer"]) == 1
    said = capfd.readouterr().err
    assert "nobody attends migrations here" in said
    assert "No such file" not in said  # the other host would take it for a missing program


def test_the_list_says_so() -> None:
    state = DomainState(name="web1", uuid=UUID, state="running")
    assert "running, attended" in "\n".join(listing([state], [], {UUID}))
    assert "attended" not in "\n".join(listing([state], []))


def test_the_last_migration_is_drawn(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the code that draws those of `entourage migrate`; also of a domain that has gone."""
    assert main(["attend", "--timeline", "web1"]) == 2
    assert "no attended migration" in capsys.readouterr().err
    for name, uuid in (("web1", UUID), ("web2", UUID[::-1])):
        file = shown.EventsFile(settings, uuid)
        for event in (
            MigrationStarted(
                at=0, migration="m", domain=name, uuid=uuid, source="a", target="b",
                hypervisor="attended:x", devices=("external/dongle",), time="",
            ),
            StepStarted(at=0.1, step=Step.TRANSFER),
            GuestStopped(at=0.1),
            SpanDone(at=0.12, name="devices: TRANSFER", host="a", start=0.1),
            GuestResumed(at=0.15, host="b", blackout=0.05),
            Finished(at=0.2, outcome="moved", seconds=0.2, runs_on="b", blackout=0.05),
        ):  # fmt: skip
            file.write(event)
    assert main(["attend", "--timeline", "web1"]) == 0
    said = capsys.readouterr().out
    assert "Blackout 50 ms" in said
    assert "devices: TRANSFER" in said
    assert "web1 runs on b" in said
    assert "web2" not in said
