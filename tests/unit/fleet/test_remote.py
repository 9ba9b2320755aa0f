"""What hosts say, by a command that stands in for ssh."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from entourage.errors import EntourageError
from entourage.fleet import remote as module
from entourage.fleet.fleetfile import FleetFile, HostEntry
from entourage.fleet.remote import Remote
from entourage.settings.model import Settings

FLEET = FleetFile(host=(HostEntry(name="b"), HostEntry(name="c", from_others="c.example")))


def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> Remote:
    """Whatever is asked, this answers; what was asked is in ``asked``."""
    asked = tmp_path / "asked"

    def ssh(host: str, _: Settings, words: Any, **__: Any) -> list[str]:
        told = shlex.join([host, *words])
        body = f"import sys\nopen({str(asked)!r}, 'a').write({told!r} + '\\n')\n{script}"
        return [sys.executable, "-c", body]

    monkeypatch.setattr(module, "ssh_command", ssh)
    return Remote(FLEET, Settings())


def say(text: str, *, status: int = 0, error: str = "") -> str:
    return f"sys.stdout.write({text!r}); sys.stderr.write({error!r}); sys.exit({status})"


async def test_what_a_newer_host_says_more_is_left_aside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (
        '{"host": "b", "memory": 5, "free": 3, "new": [1],'
        ' "domains": [{"name": "x", "uuid": "u", "more": {}}]}'
    )
    room = await remote(monkeypatch, tmp_path, say(text)).room("b")
    assert (room.free, room.domains[0].name) == (3, "x")


@pytest.mark.parametrize(
    ("script", "match"),
    [
        (say("{"), "cannot be understood"),
        (say('{"host": "b", "memory": -5, "free": 3}'), "cannot be understood"),
        (say("", status=255, error="no route"), "ssh does not reach b: no route"),
        (say("", status=2, error="entourage: No such command 'room'"), "No such command 'room'"),
        (say("", status=1), "`entourage room` on b ended with 1"),
    ],
)
async def test_what_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, match: str
) -> None:
    with pytest.raises(EntourageError, match=match) as raised:
        await remote(monkeypatch, tmp_path, script).room("b")
    assert raised.value.host == "b"
    assert raised.value.remedy


async def test_a_host_that_says_too_much(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A line without an end is left out, and what comes after it is heard."""
    monkeypatch.setattr(module, "_LINE", 1 << 12)
    script = 'print(\'x\' * (1 << 20))\nprint(\'{"event": "finished", "outcome": "moved"}\')'
    heard: list[Any] = []
    one = remote(monkeypatch, tmp_path, script)
    ended = await one.migrate("web1", "b", "c", ("--bandwidth=1",), heard.append)
    assert (ended.status, ended.events["outcome"]) == (0, "moved")
    assert (tmp_path / "asked").read_text() == (
        "b migrate --json --bandwidth=1 -- web1 c.example\n"
    )


async def test_who_hears_and_cannot_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is an error of ours: a group of them would be told as a bug."""
    deep = '{"a":' * 10_000
    one = remote(monkeypatch, tmp_path, say(f'{deep}\n{{"event": "x"}}\n'))

    def heard(event: Any) -> None:
        if event:
            raise EntourageError("the database is away")

    with pytest.raises(EntourageError, match="the database is away"):
        await one.migrate("web1", "b", "c", (), heard)


REFUSED = (
    '{"event": "device-refused", "device": "net/net0", "host": "c", "reason": "no br0",'
    ' "remedy": "--net"}\n{"event": "finished", "outcome": "refused", "message": "refused"}\n'
)
CAN = '{"event": "finished", "outcome": "can-move"}\n'
BUSY = '{"event": "finished", "outcome": "failed", "message": "it is busy"}\n'


async def test_what_is_against_a_move(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = remote(monkeypatch, tmp_path, say(REFUSED, status=3))
    told: list[int] = []
    found = await one.test(["-web1"], "b", "c", (), lambda: told.append(1))
    assert (found, len(told)) == ({"-web1": [("net/net0 on c: no br0", "--net")]}, 1)
    assert (tmp_path / "asked").read_text() == "b check --json -- -web1 c.example\n"
    one = remote(monkeypatch, tmp_path, say("", status=3, error="entourage: busy"))
    assert await one.test(["web1"], "b", "c") == {"web1": [("busy", "")]}
    one = remote(monkeypatch, tmp_path, say(CAN))
    assert await one.test(["web1"], "b", "c") == {"web1": []}


async def test_several_are_tested_by_one_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = remote(monkeypatch, tmp_path, say(REFUSED + CAN + BUSY, status=1))
    found = await one.test(["web1", "web2", "web3"], "b", "c", ("--tool=x",))
    asked = "b check --json --tool=x --also=web2 --also=web3 -- web1 c.example\n"
    assert (tmp_path / "asked").read_text() == asked
    assert found == {
        "web1": [("net/net0 on c: no br0", "--net")],
        "web2": [],
        "web3": [("it is busy", "")],
    }


async def test_what_was_not_got_to_is_not_taken_for_what_can_move(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one = remote(monkeypatch, tmp_path, say(CAN, status=255, error="cut off"))
    found = await one.test(["web1", "web2"], "b", "c")
    assert found == {"web1": [], "web2": [("ssh does not reach b: cut off", "")]}


async def test_an_older_host_is_asked_one_by_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = f"""
if "--also" in open({str(tmp_path / "asked")!r}).read().splitlines()[-1]:
    sys.stderr.write("entourage: no such option: --also")
    sys.exit(2)
{say(CAN)}"""
    told: list[int] = []
    one = remote(monkeypatch, tmp_path, script)
    found = await one.test(["web1", "web2"], "b", "c", (), lambda: told.append(1))
    assert (found, len(told)) == ({"web1": [], "web2": []}, 2)
    assert len((tmp_path / "asked").read_text().splitlines()) == 3
