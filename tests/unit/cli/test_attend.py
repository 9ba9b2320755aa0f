"""``entourage attend --check``, ``--off`` and ``--on``, with a daemon's socket and without one."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import pytest

from entourage.__main__ import main
from entourage.attend import shown
from entourage.attend.shown import AttendedDomain
from entourage.cli.domains import listing
from entourage.hypervisors.base import DomainState
from entourage.settings.model import PathSettings, Settings

UUID = "0c5ee0b1-1b1b-4b1b-8b1b-0b1b1b1b1b1b"
ONE = AttendedDomain(domain="web1", uuid=UUID, devices=("external/dongle",))


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("STATE", "RUN", "LOG"):
        monkeypatch.setenv(f"ENTOURAGE_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.delenv("ENTOURAGE_CONFIG", raising=False)
    return Settings(paths=PathSettings(run=str(tmp_path / "run")))


def daemon(tmp_path: Path, answer: bytes) -> list[dict[str, str]]:
    """Be the daemon, once; what it is asked comes into the list."""
    place = tmp_path / "run/attend"
    place.mkdir(parents=True, exist_ok=True)
    asked: list[dict[str, str]] = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(place / "control"))
    server.listen()

    def serve() -> None:
        with server, server.accept()[0] as client, client.makefile("rwb") as lines:
            asked.append(json.loads(lines.readline()))
            lines.write(answer)

    threading.Thread(target=serve, daemon=True).start()
    return asked


@pytest.mark.parametrize(
    "words", [["web1"], ["--check"], ["--check", "--off", "web1"], ["--on", "--off"]]
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


def test_what_is_attended(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    shown.write(settings, ONE)
    assert main(["attend", "--check", "web1"]) == 0
    said = capsys.readouterr().out
    assert "web1: attended" in said
    assert "external/dongle" in said
    assert "20 s" in said
    assert main(["attend", "--check", "--json", UUID]) == 0
    assert json.loads(capsys.readouterr().out)["domain"] == "web1"


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
    assert "nobody attends migrations here" in capfd.readouterr().err


def test_the_list_says_so() -> None:
    state = DomainState(name="web1", uuid=UUID, state="running")
    assert "running, attended" in "\n".join(listing([state], [], {UUID}))
    assert "attended" not in "\n".join(listing([state], []))
