"""The deadman of a libvirt domain: ends its migration's job and lets its guest run again.

After Perform and before Confirm the guest stands still on the source, and libvirtd leaves it so for
ever when the process that drives the phases dies. Loaded by ``deadman_program.py``, which says
when; it needs nothing but the standard library and ``libvirt.so.0``.
"""

import ctypes
import json
import sys
import threading
import time
from typing import Any

_DEADLINE = 60.0
_AGAIN = 0.05
_ASKS_AFTER = 0.7  # seconds
_ASKS_EVERY = 0.5
_SOON = 0.01
_AT_ONCE = 0.001
_CUT_AFTER = 0.1
_ENDS_WITHIN = 10.0
_FAILS_WITHIN = 1.0
_COPIES_END_WITHIN = 1.0
_FLUSHES_WITHIN = 3.0
_WAKE_UP = b'{"execute": "migrate-continue", "arguments": {"state": "cancelling"}}'
_COPIES = b'{"execute": "query-block-jobs"}'
_WHERE = b'{"execute": "query-migrate"}'
_CUT_OFF = b'{"execute": "yank", "arguments": {"instances": [{"type": "migration"}]}}'
_HELD = frozenset({"pre-switchover", "device"})
_HOLDS = _HELD | {"completed"}
_LIVE = 1  # VIR_MIGRATE_LIVE
_RUNNING, _PAUSED = 1, 3


class LibvirtDomain:
    """One domain, by libvirt's C library.

    Args:
        uri: libvirtd's.
        uuid: The domain's.
        copies: Names of QEMU's jobs, and their nodes, that copy changes of its disks.
    """

    def __init__(self, uri: str, uuid: str, copies: list[str]) -> None:
        self._uri, self._uuid = uri.encode(), uuid.encode()
        self._copies = copies
        self._library = ctypes.CDLL("libvirt.so.0")
        for name in ("virConnectOpen", "virDomainLookupByUUIDString"):
            getattr(self._library, name).restype = ctypes.c_void_p
        # Without it, every error is printed, also those that are expected.
        self._quiet = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(lambda *_: None)
        self._library.virSetErrorFunc(None, self._quiet)
        self._domain: Any = None
        self._held_since = 0.0
        self._look_again = threading.Event()
        self._looking: threading.Thread | None = None
        try:
            self._qemu: Any = ctypes.CDLL("libvirt-qemu.so.0")
        except OSError:
            self._qemu = None

    def connect(self) -> bool:
        """Connect (again), and find the domain; whether there is one.

        What it was found by before stays open: another thread may be asking there.
        """
        opened = self._library.virConnectOpen(self._uri)
        if not opened:
            return False
        connection = ctypes.c_void_p(opened)
        found = self._library.virDomainLookupByUUIDString(connection, self._uuid)
        if not found:
            self._library.virConnectClose(connection)
            return False
        self._domain = ctypes.c_void_p(found)
        return True

    def state(self) -> int:
        """Its ``virDomainState``; -1 where libvirtd does not say."""
        state, reason = ctypes.c_int(-1), ctypes.c_int()
        status: int = self._library.virDomainGetState(
            self._domain, ctypes.byref(state), ctypes.byref(reason), 0
        )
        return state.value if status == 0 else -1

    def end_job(self) -> None:
        """End the migration, if one is under way; returns when it has, or does not."""
        if self._busy() and self._cut_off():
            failed = time.monotonic() + _FAILS_WITHIN
            while self._busy() and time.monotonic() < failed:
                time.sleep(_SOON)
        deadline = time.monotonic() + _ENDS_WITHIN
        waited = False  # for a Confirm that was under way: it lets the guest run, and soon ends
        while self._busy() and time.monotonic() < deadline:
            if self._where() == "completed":
                if waited and self.state() == _PAUSED:
                    self._take_back()
                waited = True
                time.sleep(_AGAIN)
                continue
            self._library.virDomainAbortJob(self._domain)
            time.sleep(_AGAIN)
            if self._busy() and self.state() == _PAUSED:
                # A QEMU that was cancelled just as it stopped may sleep for ever.
                self._tell_qemu(_WAKE_UP)

    def _take_back(self) -> None:
        """Have libvirt let the guest run again whose memory was all sent: nobody runs it there.

        Once Perform has returned, the job waits for Confirm as long as the process that began it
        lives, frozen or not, and no abort ends it. Whoever calls this must know that no other
        Confirm is under way: of two at once libvirtd (9.0) dies.
        """
        self._library.virDomainMigrateConfirm3Params(
            self._domain, None, 0, None, 0, ctypes.c_uint(_LIVE), 1
        )

    def _where(self) -> str:
        """QEMU's own word for where its migration is; empty where it does not say."""
        told = self._tell_qemu(_WHERE)
        return str(told.get("status", "")) if told else ""

    def _cut_off(self) -> bool:
        """Cut memory off, where no disk is copied any more; whether it was on its way.

        Cancelled while it sends the last, QEMU may die of the guest's next write; cut off instead,
        it fails by itself, and libvirt's job ends with it. While libvirt ends the copies of a
        stopped guest, it is about to let QEMU send the last: that is waited for (see rollback.py).
        """
        deadline = time.monotonic() + _COPIES_END_WITHIN
        while self._tell_qemu(_COPIES) != []:
            at = self._where()
            ending = at in _HELD or (at == "active" and self.state() == _PAUSED)
            if not ending or time.monotonic() > deadline:
                return False
            time.sleep(_SOON)
        return self._tell_qemu(_CUT_OFF) is not None

    def _busy(self) -> bool:
        """Whether a job is under way (the first field of ``virDomainJobInfo``)."""
        info = (ctypes.c_ulonglong * 32)()
        status: int = self._library.virDomainGetJobInfo(self._domain, info)
        return status == 0 and info[0] & 0xFFFFFFFF != 0

    def end_copies(self, deadline: float) -> bool:
        """End copies of changes, which fail the writes of a guest that runs (``changes.py``).

        A process that was frozen may be about to begin one: it finds no node any more, or where a
        copy of a whole disk is there, one that was cut off.

        Args:
            deadline: Of the monotonic clock: when nothing is waited for any more.

        Returns:
            False where libvirtd does not pass it on, or one does not end: the guest must not run
            yet.
        """
        began, left = time.monotonic(), list(self._copies)
        while left and time.monotonic() < deadline:
            jobs = self._tell_qemu(_COPIES)
            if jobs is None:
                return False
            every = {job["device"] for job in jobs}
            busy = every.intersection(left)
            for name in tuple(left):
                if name in busy:
                    self._answer(_words("block-job-cancel", device=name, force=True))
                if name not in busy or time.monotonic() - began > _CUT_AFTER:
                    # Or QEMU would wait for storage that hangs.
                    node = {"type": "block-node", "node-name": name}
                    self._answer(_words("yank", instances=[node]))
                # To drop a node, QEMU 10.0 waits until nothing is under way to any.
                if not busy and (every or self._drop(name)):
                    left.remove(name)
            if left:
                time.sleep(_AT_ONCE)
        return not left

    def _drop(self, node: str) -> bool:
        """Take a node away; whether it is gone, or never was."""
        answer = self._answer(_words("blockdev-del", **{"node-name": node}))
        return answer is not None and "in use" not in str(answer.get("error", {}).get("desc", ""))

    def _tell_qemu(self, words: bytes) -> Any:
        """Say something to QEMU itself; what it answers, or None where it refuses."""
        answer = self._answer(words)
        return None if answer is None else answer.get("return")

    def _answer(self, words: bytes) -> Any:
        """The whole answer, of which QEMU's refusal is one; None where nobody passes it on."""
        answer = ctypes.c_char_p()
        if self._qemu is None or self._qemu.virDomainQemuMonitorCommand(
            self._domain, words, ctypes.byref(answer), ctypes.c_uint(0)
        ):
            return None
        return json.loads(answer.value or b"{}")

    def resume(self) -> None:
        """Let it run; libvirtd waits itself until what is under way has ended."""
        self._library.virDomainResume(self._domain)

    def held_for(self) -> float:
        """By what libvirtd and QEMU have said; see ``deadman_program.Guest``.

        They are asked in a thread, once for each call of this: where one does not answer, the
        parent's words are still heard.
        """
        if self._looking is None:
            self._looking = threading.Thread(target=self._look, daemon=True)
            self._looking.start()
        self._look_again.set()
        since = self._held_since
        return time.monotonic() - since if since else 0.0

    def _look(self) -> None:
        """See whether its migration holds it. QEMU is not asked in a blackout as it should be."""
        paused_at = asked_at = 0.0
        while self._look_again.wait():
            self._look_again.clear()
            state, now = self.state(), time.monotonic()
            paused_at = (paused_at or now) if state == _PAUSED else 0.0
            if not paused_at:
                self._held_since = 0.0
            if now - asked_at < _ASKS_EVERY:
                continue
            if state < 0:  # libvirtd went away, and may come back
                asked_at = now
                self.connect()
            elif paused_at and now - paused_at > _ASKS_AFTER:
                asked_at = now
                where = self._where()
                if where in _HOLDS:
                    self._held_since = paused_at
                elif where:  # its user has paused it, or disks are flushed before it is held
                    self._held_since, paused_at = 0.0, max(paused_at, now - _FLUSHES_WITHIN)

    def give_up(self, *, run_again: bool) -> str:
        """See ``resume``."""
        return resume(self, run_again=run_again)


def _words(command: str, **arguments: object) -> bytes:
    """A command of QMP's."""
    return json.dumps({"execute": command, "arguments": arguments}).encode()


def resume(domain: LibvirtDomain, *, run_again: bool) -> str:
    """Give the migration up and let the guest run; returns what became of it."""
    deadline = time.monotonic() + _DEADLINE
    while time.monotonic() < deadline:
        state = domain.state()
        if state < 0:  # libvirtd went away, and may come back
            domain.connect()
            time.sleep(_AGAIN)
            continue
        if state == _RUNNING:
            domain.end_job()
            if not domain.end_copies(deadline):
                time.sleep(_AGAIN)
                continue
            return "the guest runs"
        if state != _PAUSED:
            return "its machine is gone"
        domain.end_job()
        if not domain.end_copies(deadline):
            time.sleep(_AGAIN)
            continue
        if not run_again:
            return "the migration is ended; the guest stays paused, as its user had it"
        domain.resume()
    return "it could not be reached in time; `virsh resume` lets the guest run"


def open_guest(arguments: list[str]) -> LibvirtDomain:
    """Connect to libvirtd and find the domain.

    Args:
        arguments: The connection's URI, the domain's UUID, and the names of QEMU's jobs that copy
            changes of its disks.
    """
    uri, uuid, *copies = arguments
    domain = LibvirtDomain(uri, uuid, copies)
    if not domain.connect():
        sys.exit(f"entourage: deadman: {uri} does not answer, or has no such domain")
    return domain
