"""The deadman of a libvirt domain: how it ends the job, told by what it says to QEMU."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from entourage.domain import Block
from entourage.hypervisors.libvirt import deadman
from entourage.hypervisors.libvirt.changes import copy_name
from tests.unit.eventually import wait_until

RUNNING, PAUSED = 1, 3
COPIES = ["entourage-copy-vda", "entourage-copy-vdb"]
FOR_EVER = 1000  # looks: more than there is time for


class Answering(deadman.LibvirtDomain):
    """A domain whose libvirt and QEMU are made up.

    Args:
        at: Where QEMU says that its migration is.
        looks: At its copies, until they have ended.
        state: Of the domain.
    """

    def __init__(self, at: str, *, looks: int, state: int) -> None:
        self._at, self._looks, self._state = at, looks, state
        self.told: list[str] = []
        self._library: Any = self
        self._domain: Any = None
        self._looking = None
        self._look_again = threading.Event()
        self._held_since = 0.0
        self._uri, self._uuid = b"", b""
        self._copies = list[str]()

    def state(self) -> int:
        return self._state

    def _busy(self) -> bool:
        return not self.told

    def _tell_qemu(self, words: bytes) -> Any:
        match json.loads(words)["execute"]:
            case "query-block-jobs":
                self._looks -= 1
                return [{"device": "vda"}] if self._looks >= 0 else []
            case "query-migrate":
                return {"status": self._at}
            case "yank" if self._at == "completed":
                return None  # there is no such connection any more
            case command:
                self.told.append(command)
                return {}

    def virDomainMigrateConfirm3Params(self, *_arguments: Any) -> None:  # noqa: N802 - same
        self.told.append("take back")

    def virDomainAbortJob(self, _domain: Any) -> None:  # noqa: N802 - libvirt's
        self.told.append("abort")


@pytest.mark.parametrize(
    ("at", "state", "looks", "told"),
    [
        ("active", RUNNING, FOR_EVER, "abort"),
        ("active", RUNNING, 0, "yank"),
        ("active", PAUSED, 3, "yank"),
        ("pre-switchover", PAUSED, 3, "yank"),
        ("pre-switchover", PAUSED, FOR_EVER, "abort"),
        ("completed", PAUSED, 0, "take back"),
    ],
)
def test_memory_is_cut_off_once_the_copies_of_a_stopped_guest_have_ended(
    monkeypatch: pytest.MonkeyPatch, at: str, state: int, looks: int, told: str
) -> None:
    """A cancel that comes as QEMU is told to send the last is one that it may die of."""
    monkeypatch.setattr(deadman, "_COPIES_END_WITHIN", 0.1 if looks == FOR_EVER else 20)
    domain = Answering(at, looks=looks, state=state)
    domain.end_job()
    assert domain.told == [told]


class Copying(Answering):
    """One whose changes are being copied, to storage that hangs.

    Args:
        answers: How often its libvirtd passes on what QEMU is told; after that it is gone.
    """

    def __init__(self, answers: int = FOR_EVER) -> None:
        super().__init__("none", looks=0, state=PAUSED)
        self._copies = COPIES
        self.nodes = set(COPIES)
        self.jobs = set(COPIES[:1])
        self._answers = answers

    def _busy(self) -> bool:
        return False

    def _tell_qemu(self, words: bytes) -> Any:
        answer = self._answer(words)
        return answer and answer.get("return")

    def _answer(self, words: bytes) -> Any:
        self._answers -= 1
        if self._answers < 0:
            return None
        said = json.loads(words)
        match said["execute"], said.get("arguments", {}):
            case "query-block-jobs", _:
                return {"return": [{"device": name} for name in self.jobs]}
            case "yank", {"instances": [{"node-name": name}]}:
                self.told.append(f"yank {name}")
                self.jobs.discard(name)
            case "blockdev-del", {"node-name": name}:
                assert not self.jobs - {name}  # QEMU 10.0 would wait for them
                if name in self.jobs:
                    return {"error": {"desc": f"Node {name} is in use"}}
                if name not in self.nodes:
                    return {"error": {"desc": f"Failed to find node with node-name='{name}'"}}
                self.nodes.discard(name)
            case command, _:
                self.told.append(command)
        return {"return": {}}

    def resume(self) -> None:
        assert not self.jobs.intersection(COPIES)  # or its guest's writes would fail
        self.told.append("resume")


@pytest.mark.parametrize("run_again", [True, False])
def test_the_guest_runs_only_once_its_changes_are_not_copied_any_more(
    monkeypatch: pytest.MonkeyPatch,
    run_again: bool,  # noqa: FBT001 - a case's
) -> None:
    monkeypatch.setattr(deadman, "_CUT_AFTER", 0.01)
    domain = Copying()

    def state() -> int:
        return RUNNING if "resume" in domain.told else PAUSED

    monkeypatch.setattr(domain, "state", state)
    said = domain.give_up(run_again=run_again)
    stays = "the migration is ended; the guest stays paused, as its user had it"
    assert said == ("the guest runs" if run_again else stays)
    assert domain.told[0] == "block-job-cancel"
    assert "yank entourage-copy-vda" in domain.told
    assert (domain.jobs, domain.nodes) == (set(), set())
    assert ("resume" in domain.told) == run_again


def test_nobody_runs_it_while_libvirtd_does_not_say_whether_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadman, "_DEADLINE", 0.2)
    domain = Copying(answers=0)
    assert "could not be reached" in domain.give_up(run_again=True)
    assert domain.told == []


@pytest.mark.parametrize("answers", [0, 2])
def test_nor_is_its_work_done_where_the_guest_runs_already(
    monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    monkeypatch.setattr(deadman, "_DEADLINE", 0.2)
    domain = Copying(answers=answers)
    monkeypatch.setattr(domain, "state", lambda: RUNNING)
    assert "could not be reached" in domain.give_up(run_again=True)


def test_a_copy_that_does_not_end_is_waited_for_no_longer_than_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a disk of the guest's own does not answer."""
    monkeypatch.setattr(deadman, "_DEADLINE", 0.2)
    domain = Copying()
    domain.jobs = Stays(COPIES[:1])
    assert "could not be reached" in domain.give_up(run_again=True)
    assert "resume" not in domain.told


class Stays(set[str]):
    """Jobs that do not end."""

    def discard(self, _element: object, /) -> None:
        """It is cut off for nothing."""


def test_no_node_is_dropped_beside_a_copy_of_a_whole_disk() -> None:
    """QEMU would wait for that one, whose storage may hang: what begins is cut off instead."""
    domain = Copying()
    domain.jobs = {"copy-vdc-libvirt-7-format"}
    assert domain.end_copies(time.monotonic() + 5)
    assert domain.told == [f"yank {name}" for name in COPIES]
    assert domain.nodes == set(COPIES)


def test_they_are_called_as_the_process_calls_them() -> None:
    assert copy_name(Block(id="vda", path="/x")) == COPIES[0]


def test_a_confirm_that_is_under_way_has_no_second_beside_it() -> None:
    """Of two at once libvirtd dies. The one that is under way lets the guest run, and ends."""

    class Confirming(Answering):
        looked = 0

        def state(self) -> int:
            return RUNNING

        def _busy(self) -> bool:
            self.looked += 1
            return self.looked < 10

    domain = Confirming("completed", looks=0, state=PAUSED)
    domain.end_job()
    assert domain.told == []


def test_a_libvirtd_that_does_not_answer_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadman, "_ASKS_AFTER", 0)
    monkeypatch.setattr(deadman, "_ASKS_EVERY", 0)
    hangs, seen = threading.Event(), threading.Event()

    class Hanging(Answering):
        def state(self) -> int:
            seen.set()
            hangs.wait(5)
            return super().state()

    domain = Hanging("pre-switchover", looks=0, state=PAUSED)
    assert not domain.held_for()
    assert seen.wait(5)
    assert not domain.held_for()
    hangs.set()
    wait_until(domain.held_for)


def test_only_a_migration_holds_it_and_qemu_is_not_asked_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a blackout as it should be, nothing comes between libvirt and QEMU."""
    monkeypatch.setattr(deadman, "_ASKS_EVERY", 0)
    asked = threading.Event()

    class Seen(Answering):
        def _where(self) -> str:
            asked.set()
            return super()._where()

    domain = Seen("active", looks=0, state=PAUSED)
    monkeypatch.setattr(deadman, "_ASKS_AFTER", 1000)
    domain.held_for()
    assert not asked.wait(0.2)
    monkeypatch.setattr(deadman, "_ASKS_AFTER", 0)
    for _ in range(2):  # what became of the first is known when it is asked again
        asked.clear()
        wait_until(lambda: domain.held_for() or asked.is_set())
    assert not domain.held_for()  # its user has paused it


def test_a_guest_that_its_user_had_paused_is_held_only_since_its_migration_holds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadman, "_ASKS_AFTER", 0)
    monkeypatch.setattr(deadman, "_ASKS_EVERY", 0)
    monkeypatch.setattr(deadman, "_FLUSHES_WITHIN", 0)
    domain, looked = Answering("active", looks=0, state=PAUSED), list[float]()

    def where() -> str:
        looked.append(time.monotonic())
        time.sleep(0.2 if len(looked) == 1 else 0)  # so long it was paused before that
        return "active" if len(looked) < 3 else "device"

    monkeypatch.setattr(domain, "_where", where)
    wait_until(domain.held_for)
    held_for = domain.held_for()
    assert held_for < time.monotonic() - looked[0] - 0.1


class Library:
    """A fake of libvirt's, which finds the domain at the second attempt."""

    def __init__(self) -> None:
        self.closed: list[Any] = []
        self._found = [0, 7, 8]
        self._opened = [1, 2, 3]

    def virConnectOpen(self, _uri: bytes) -> int:  # noqa: N802 - libvirt's
        return self._opened.pop(0)

    def virDomainLookupByUUIDString(self, _connection: Any, _uuid: bytes) -> int:  # noqa: N802
        return self._found.pop(0)

    def virConnectClose(self, connection: Any) -> None:  # noqa: N802 - same
        self.closed.append(connection.value)


def test_what_the_domain_was_found_by_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may be asking there: closed twice, it is freed under its hands."""
    domain = Answering("active", looks=0, state=RUNNING)
    library = Library()
    monkeypatch.setattr(domain, "_library", library)
    assert [domain.connect() for _ in range(3)] == [False, True, True]
    assert library.closed == [1]
