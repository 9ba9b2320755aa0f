"""Programs in the guest, run by a stand-in for its agent."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt import connection, guestagent
from entourage.hypervisors.libvirt.constants import State
from entourage.hypervisors.libvirt.guestagent import LibvirtGuestAgent
from tests.unit.hypervisors.libvirt.fakes import Failed

CHANNEL = "<channel type='unix'><target name='org.qemu.guest_agent.0' state='{}'/></channel>"
NESTED = '{"return": ' + "[" * 100_000 + "]" * 100_000 + "}"
DENIED = base64.b64encode(b"not now\x1b[31m\n").decode()


class Raw:
    """A domain whose agent's channel is in one state after the other; the last one stays."""

    def __init__(self, *channel: str, state: int = State.RUNNING) -> None:
        self._channel = list(channel or ("connected",))
        self._state = state

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's
        now = self._channel.pop(0) if len(self._channel) > 1 else self._channel[0]
        return f"<domain><devices>{CHANNEL.format(now)}</devices></domain>"

    def state(self, _flags: int) -> tuple[int, int]:
        return self._state, 0


def agent_of(domain: Raw) -> LibvirtGuestAgent:
    async def raw() -> Raw:
        return domain

    return LibvirtGuestAgent(raw, "web1")


@pytest.fixture
def agent() -> LibvirtGuestAgent:
    return agent_of(Raw())


ALLOWED = {"name": "guest-exec", "enabled": True}
STATUS = {"name": "guest-exec-status", "enabled": True}
Says = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """Have the agent answer in turn; what it is asked comes into the list."""

    def saying(*answers: Any) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []
        left = list(answers)

        def answer(_domain: Any, text: str, _timeout: int, _flags: int) -> str:
            asked.append(json.loads(text))
            said = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(said, Exception):
                raise said
            return said if isinstance(said, str) else json.dumps({"return": said})

        monkeypatch.setattr("libvirt_qemu.qemuAgentCommand", answer)
        monkeypatch.setattr(guestagent, "_LOOK_EVERY", 0.001)
        return asked

    return saying


async def test_a_program_is_run_to_its_end(agent: LibvirtGuestAgent, says: Says) -> None:
    asked = says({"pid": 7}, {"exited": False}, {"exited": True, "exitcode": 0})
    await agent.run("/etc/moved", ("before", "b"))
    began = {"path": "/etc/moved", "arg": ["before", "b"], "capture-output": True}
    status = {"execute": "guest-exec-status", "arguments": {"pid": 7}}
    assert asked == [{"execute": "guest-exec", "arguments": began}, status, status]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            ({"pid": 7}, {"exited": True, "exitcode": 1, "err-data": DENIED}),
            r"ended with 1: not now\\x1b",
        ),
        (({"pid": 7}, {"exited": True, "signal": 9}), "ended by signal 9"),
        (("what?",), "not understood"),
        (({"pid": 7}, NESTED), "not understood"),
        (({"pid": 7}, {"exited": True}), "is not known"),
        (({"pid": 7}, {"exited": True, "exitcode": 2, "err-data": "%"}), "ended with 2"),
        (({"pid": 7}, {"exited": True, "exitcode": 2, "err-data": "abcde"}), "not understood"),
        ((Failed("guest-exec is disabled"),), "was not run: .*guest-exec is disabled"),
    ],
)
async def test_what_goes_wrong_is_told(
    agent: LibvirtGuestAgent, says: Says, answers: Any, said: str
) -> None:
    says(*answers)
    with pytest.raises(HypervisorError, match=said) as told:
        await agent.run("/etc/moved", ("before", "b"))
    assert str(told.value).isprintable()


async def test_one_that_does_not_end_is_not_waited_for(
    agent: LibvirtGuestAgent, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guestagent, "RUNS_WITHIN", 0.05)
    says({"pid": 7}, {"exited": False})
    with pytest.raises(HypervisorError, match="has not ended within"):
        await agent.run("/etc/moved", ("before", "b"))


async def test_one_that_has_just_come_listens_a_moment_later(says: Says) -> None:
    """Without asking it again, which could run the program twice."""
    asked = says({"pid": 7}, {"exited": True, "exitcode": 0})
    agent = agent_of(Raw("disconnected", "disconnected", "connected"))
    await agent.run("/etc/moved", ("after", "a"))
    assert [each["execute"] for each in asked] == ["guest-exec", "guest-exec-status"]


async def test_one_that_never_listens(says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = says({"pid": 7})
    monkeypatch.setattr(guestagent, "_LISTENS_WITHIN", 0.05)
    with pytest.raises(HypervisorError, match="was not run: no guest agent answers"):
        await agent_of(Raw("disconnected")).run("/etc/moved", ("after", "a"))
    assert asked == []


async def test_whether_it_answers_is_in_the_xml() -> None:
    [(why, _)] = await agent_of(Raw("disconnected")).objections()
    assert why == "no guest agent answers in it"


async def test_nothing_runs_in_a_guest_that_is_paused(says: Says) -> None:
    asked = says(Failed("domain is not running"))
    agent = agent_of(Raw(state=State.PAUSED))
    [(why, remedy)] = await agent.objections()
    assert "paused" in why
    assert asked == []
    with pytest.raises(HypervisorError, match="was not run: its guest is paused") as told:
        await agent.run("/etc/moved", ("before", "b"))
    assert told.value.remedy == remedy


@pytest.mark.parametrize(
    ("says_of_itself", "found"),
    [
        ({"supported_commands": [ALLOWED, STATUS]}, ""),
        ({"supported_commands": [ALLOWED | {"enabled": False}, STATUS]}, "not allow guest-exec"),
        ({"supported_commands": [ALLOWED]}, "not allow guest-exec-status"),
        (NESTED, "not understood"),
        ([], "not understood"),
        (Failed("agent is not\x1b responding"), "does not answer"),
    ],
)
async def test_it_is_asked_what_it_allows(
    agent: LibvirtGuestAgent, says: Says, says_of_itself: Any, found: str
) -> None:
    """Else the guest would not be told, and nobody would have known before."""
    asked = says(says_of_itself)
    objections = await agent.objections()
    assert [found in why for why, _ in objections] == ([True] if found else [])
    assert all(why.isprintable() for why, _ in objections)
    assert [each["execute"] for each in asked] == ["guest-info"]


async def test_nor_is_qemu_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guest may have taken it over: that must not end who asks."""

    def answer(*_asked: Any) -> str:
        return NESTED

    monkeypatch.setattr("libvirt_qemu.qemuMonitorCommand", answer)
    with pytest.raises(HypervisorError, match="answer to object-del is not understood"):
        await connection.tell_qemu(Raw(), "object-del", id="x")
