"""The deadman of a QEMU machine: gives its migration up and lets its guest run again.

Loaded by ``deadman_program.py``, which says when; standard library only. It has a monitor of QEMU's
to itself.
"""

import contextlib
import json
import socket
import time
from typing import Any

_DEADLINE = 30.0
_YANK_AFTER = 2.0
_NUDGE = 0.05
_SOON = 0.001
_HOLDS = frozenset({"pre-switchover", "device", "completed"})
_ENDED: frozenset[str] = frozenset({"none", "completed", "failed", "cancelled"})


class _Refused(Exception):  # noqa: N818 - a word of QMP's
    """QEMU said no."""


class _Qmp:
    """A QMP connection that does one thing at a time."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._rest = b""
        self._count = 0
        self.migration = ""
        self.stopped_at = self.holds_at = 0.0
        greeted = False
        while not greeted:
            # What QEMU could not say to who was connected before comes first, perhaps torn.
            with contextlib.suppress(ValueError):
                greeted = "QMP" in self._read()
        self.run("qmp_capabilities", enable=["oob"])

    def _read(self) -> dict[str, Any]:
        """The next message; raises TimeoutError where the socket has one."""
        while b"\n" not in self._rest:
            got = self._socket.recv(1 << 16)
            if not got:
                raise EOFError
            self._rest += got
        line, self._rest = self._rest.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        match message.get("event"):
            case "MIGRATION":
                self.migration = message["data"]["status"]
                holds = self.migration in _HOLDS
                self.holds_at = (self.holds_at or time.monotonic()) if holds else 0.0
            case "STOP" | "RESUME" as event:
                self.stopped_at = time.monotonic() if event == "STOP" else 0.0
            case _:
                pass
        return message

    def run(self, command: str, *, urgent: bool = False, **arguments: object) -> Any:
        """Run a command and wait for its answer."""
        self._count += 1
        verb = "exec-oob" if urgent else "execute"
        request = json.dumps({verb: command, "arguments": arguments, "id": self._count})
        self._socket.sendall(request.encode())
        while True:
            answer = self._read()
            if answer.get("id") != self._count:
                continue
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise _Refused(answer["error"]["desc"])

    def within(self, patience: float, command: str) -> Any:
        """Run a command; raises TimeoutError where there is no answer for so many seconds."""
        self._socket.settimeout(patience)
        try:
            return self.run(command)
        finally:
            self._socket.settimeout(None)

    def hear(self) -> None:
        """Take the events that have come, without waiting for more."""
        self._socket.settimeout(0)
        try:
            while True:
                self._read()
        except BlockingIOError:
            return
        finally:
            self._socket.settimeout(None)

    def wait(self, patience: float) -> None:
        """Wait for the next event, at most for so long."""
        self._socket.settimeout(patience)
        try:
            with contextlib.suppress(TimeoutError):
                self._read()
        finally:
            self._socket.settimeout(None)


class _Guest:
    """The machine's guest; see ``deadman_program.Guest``.

    Args:
        qmp: The monitor.
        mirrors: The nodes, and jobs, of its disks' mirrors.
    """

    def __init__(self, qmp: _Qmp, mirrors: list[str]) -> None:
        self._qmp = qmp
        self._mirrors = mirrors

    def held_for(self) -> float:
        """By QEMU's events. A guest that its user has paused meanwhile is held by no migration."""
        with contextlib.suppress(EOFError, OSError):  # it has ended: nobody to be let run
            self._qmp.hear()
        stopped_at, holds_at = self._qmp.stopped_at, self._qmp.holds_at
        held = stopped_at and holds_at
        return time.monotonic() - max(stopped_at, holds_at) if held else 0.0

    def give_up(self, *, run_again: bool) -> str:
        """See ``resume``."""
        return resume(self._qmp, self._mirrors, run_again=run_again)


def resume(qmp: _Qmp, mirrors: list[str], *, run_again: bool) -> str:
    """Give the migration up and let the guest run; returns what became of it."""
    for mirror in mirrors:
        # First, and out of band: over a link that has died, mirrors hold up QEMU's main loop.
        _yank(qmp, {"type": "block-node", "node-name": mirror})
    if mirrors:
        # Cancelled with a write of the guest's under way, a mirror writes into freed memory: the
        # guest stands still for it (see ``Mirrors.give_up``).
        _urge(qmp, "stop")
    for mirror in mirrors:
        with contextlib.suppress(_Refused):  # there is no such job (any more)
            qmp.run("block-job-cancel", device=mirror, force=True)
    _until_no_backup(qmp, mirrors)
    if mirrors and run_again:
        with contextlib.suppress(_Refused):  # the migration holds it
            qmp.run("cont")
    _cancel(qmp)
    if not run_again:
        return "the migration is cancelled; the guest stays paused, as its user had it"
    deadline = time.monotonic() + _DEADLINE
    while qmp.run("query-status")["status"] != "running":
        try:
            qmp.run("cont")
        except _Refused:
            # The cancelled migration is not quite over; QEMU may resume the guest by itself.
            if time.monotonic() > deadline:
                raise
            qmp.wait(_NUDGE)
    return "the migration is cancelled; the guest runs again"


def _until_no_backup(qmp: _Qmp, names: list[str]) -> None:
    """Wait until no backup job is there, nor can be: it fails the guest's writes (``marks.py``).

    Cut off as they are, they end at once, unless the guest's own disk does not answer: for that
    there is no limit, as the guest could not write to it either. What a mirror is for has no such
    job.
    """
    deadline = time.monotonic() + _DEADLINE
    jobs = qmp.run("query-block-jobs")
    mirrored = {job["device"] for job in jobs if job["type"] == "mirror"}
    left: list[str] = [name for name in names if name not in mirrored]
    while left:
        jobs = qmp.run("query-block-jobs")
        if any(job["device"] in left and job["type"] == "backup" for job in jobs):
            qmp.wait(_NUDGE)
            continue
        # A process that was frozen may be about to begin one: it finds no target any more.
        left = [name for name in left if not _is_dropped(qmp, name)]
        if left:  # it has begun one meanwhile
            if time.monotonic() > deadline:
                return
            qmp.wait(_SOON)  # the guest stands still


def _is_dropped(qmp: _Qmp, node: str) -> bool:
    """Take a node away; whether it is gone, or never was."""
    target: dict[str, Any] = {"node-name": node}
    try:
        qmp.run("blockdev-del", **target)
    except _Refused as error:
        return "in use" not in str(error)
    return True


def _cancel(qmp: _Qmp) -> None:
    status = _urge(qmp, "query-migrate").get("status", "none")
    if status in _ENDED:
        return
    qmp.migration = ""
    if status == "device":
        # Cancelled as it sends the last, QEMU may die of the guest's next write: see rollback.py.
        _yank(qmp, {"type": "migration"})
    else:
        qmp.run("migrate_cancel")
    begin = time.monotonic()
    while qmp.migration not in _ENDED:
        waited = time.monotonic() - begin
        if waited > _DEADLINE:
            raise TimeoutError("the migration does not end")
        if waited > _YANK_AFTER:
            _yank(qmp, {"type": "migration"})
            status = qmp.run("query-migrate").get("status", "none")
            if status in _ENDED:
                return
            if status != "device":
                qmp.run("migrate_cancel")
            with contextlib.suppress(_Refused):
                # Cancelled just as it went to hold the memory back, QEMU (7.2) sleeps for ever.
                qmp.run("migrate-continue", state="cancelling")
        qmp.wait(_YANK_AFTER)


def _urge(qmp: _Qmp, command: str) -> Any:
    """Run a command; where QEMU cannot answer, the migration's connection is cut off first."""
    try:
        return qmp.within(_YANK_AFTER, command)
    except TimeoutError:
        # Sending over a link that has died silently, the migration's thread holds the lock that
        # QEMU's main loop waits for.
        _yank(qmp, {"type": "migration"})
        return qmp.run(command)


def _yank(qmp: _Qmp, instance: dict[str, str]) -> None:
    with contextlib.suppress(_Refused):  # there is no such connection (any more)
        qmp.run("yank", urgent=True, instances=[instance])


def open_guest(arguments: list[str]) -> _Guest:
    """Connect to QEMU.

    Args:
        arguments: The monitor's socket, and the nodes (and jobs) of the mirrors.
    """
    monitor, *mirrors = arguments
    return _Guest(_Qmp(monitor), mirrors)
