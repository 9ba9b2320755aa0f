"""What libvirt says by itself of one domain, and what becomes of it here."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from entourage.hypervisors.libvirt.connection import have_qemu, tell_qemu
from entourage.hypervisors.libvirt.events import Feed
from entourage.hypervisors.qmp_error import CommandError
from tests.unit.eventually import idle

UUID = "5b6e6d0e-0000-4000-8000-000000000001"


class Raw:
    """A fake of ``virConnect`` that, as libvirt does, registers one callback once."""

    def __init__(self) -> None:
        self.registered: list[int] = []

    def lookupByUUIDString(self, uuid: str) -> str:  # noqa: N802 - libvirt's
        return uuid

    def domainEventRegisterAny(self, _domain: Any, kind: int, *_more: Any) -> None:  # noqa: N802 - same
        if kind in self.registered:
            raise ValueError("event callback already tracked")
        self.registered.append(kind)


async def feed() -> tuple[Feed, Raw]:
    raw = Raw()
    connection: Any = SimpleNamespace(raw=raw)
    return Feed(connection, UUID, one_clock=True), raw


async def test_jobs_of_two_disks_are_heard_of_once() -> None:
    found, raw = await feed()
    await asyncio.gather(found.hear_of_block_jobs(), found.hear_of_block_jobs())
    await found.hear_of_block_jobs()
    assert len(raw.registered) == 1


@pytest.mark.parametrize(
    ("event", "said", "copies"),
    [
        ("BLOCK_JOB_COMPLETED", {"device": "entourage-copy-vda"}, {"entourage-copy-vda": ""}),
        (
            "BLOCK_JOB_COMPLETED",
            {"device": "entourage-copy-vda", "error": "No space left on device"},
            {"entourage-copy-vda": "No space left on device"},
        ),
        (
            "BLOCK_JOB_CANCELLED",
            {"device": "entourage-copy-vda"},
            {"entourage-copy-vda": "it was given up"},
        ),
        ("BLOCK_JOB_COMPLETED", {"device": "copy-vda-libvirt-3-format"}, {}),
        ("BLOCK_JOB_READY", {"device": "entourage-copy-vda"}, {}),
    ],
)
async def test_the_end_of_a_copy_of_changes(
    event: str, said: dict[str, str], copies: dict[str, str]
) -> None:
    """Of QEMU's other jobs libvirt tells by itself."""
    found, _ = await feed()
    domain = SimpleNamespace(UUIDString=lambda: UUID)
    listener: Any = found
    listener._on_qemu(None, domain, event, 0, 0, json.dumps(said), None)
    other = SimpleNamespace(UUIDString=lambda: UUID.replace("1", "2"))
    listener._on_qemu(None, other, event, 0, 0, json.dumps({"device": "entourage-copy-x"}), None)
    await idle()
    assert found.known.copies == copies


async def test_what_qemu_refuses_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"yes": {"return": {"a": 1}}, "no": {"error": {"desc": "Device not found"}}}

    def command(_raw: Any, text: str, _flags: int) -> str:
        return json.dumps(answers[json.loads(text)["execute"]])

    fake = SimpleNamespace(qemuMonitorCommand=command)

    def load(_name: str) -> SimpleNamespace:
        return fake

    monkeypatch.setattr("importlib.import_module", load)
    assert await have_qemu(None, "yes", {}) == {"a": 1}
    assert await tell_qemu(None, "no") is None
    with pytest.raises(CommandError, match="QEMU refuses no: Device not found") as told:
        await have_qemu(None, "no", {}, device="block/vda")
    assert (told.value.device, told.value.reason) == ("block/vda", "Device not found")
