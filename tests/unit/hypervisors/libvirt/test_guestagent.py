"""Programs in the guest, run by a stand-in for its agent."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from entourage.errors import HypervisorError
from entourage.hypervisors.libvirt import guestagent
from entourage.hypervisors.libvirt.guestagent import LibvirtGuestAgent
from tests.unit.hypervisors.libvirt.fakes import Failed

CHANNEL = "<channel type='unix'><target name='org.qemu.guest_agent.0' state='{}'/></channel>"
DENIED = base64.b64encode(b"not now\x1b[31m\n").decode()


class Raw:
    """A domain whose agent's channel is in some state."""

    def __init__(self, state: str) -> None:
        self.state = state

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's
        return f"<domain><devices>{CHANNEL.format(self.state)}</devices></domain>"


@pytest.fixture
def agent() -> LibvirtGuestAgent:
    async def raw() -> Raw:
        return Raw("connected")

    return LibvirtGuestAgent(raw, "web1")


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
            return json.dumps({"return": said})

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
    monkeypatch.setattr(guestagent, "_RUNS_WITHIN", 0.05)
    says({"pid": 7}, {"exited": False})
    with pytest.raises(HypervisorError, match="has not ended within"):
        await agent.run("/etc/moved", ("before", "b"))


@pytest.mark.parametrize(("state", "found"), [("connected", 0), ("disconnected", 1)])
async def test_whether_it_answers_is_in_the_xml(state: str, found: int) -> None:
    async def raw() -> Raw:
        return Raw(state)

    assert len(await LibvirtGuestAgent(raw, "web1").objections()) == found
