"""Watches guests from outside: a ping each millisecond, and what the guests say they have done."""

from __future__ import annotations

import mmap
import os
import re
import selectors
import signal
import socket
import sys
import threading
import time
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from lab import network
from lab.host import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from lab.hosts import Lab
    from lab.processes import HostProcess

REPORT_PORT = 7700
PING_INTERVAL = 0.005
"""Seconds. A guest under TCG pays for each ping; who measures blackouts asks for 0.001."""
_MAX_PINGS = 4_000_000  # over an hour; the file is sparse
_REPORT = re.compile(rb"(up|tick|ack|error) (\S+)(?: (\S+) (\S+))?")


@dataclass(frozen=True)
class Report:
    """What one guest has said of itself up to now."""

    boot: str = ""
    boots: tuple[str, ...] = ()  # all boot ids seen, in order: more than one is a reboot
    ticks: int = 0
    uptime: float = 0.0
    acked: dict[str, int] = field(default_factory=dict[str, int])  # disk: last number written
    up: bool = False
    errors: tuple[str, ...] = ()  # writes that failed in the guest, or ticks that went back
    connections: int = 0  # of the guest to the observer; more than one: it broke


@dataclass(frozen=True)
class Gap:
    """The longest time without an answer; all times in seconds of the monotonic clock."""

    seconds: float
    start: float
    end: float
    sent: int  # pings in the whole window
    lost: int  # those of them without an answer
    send_pause: float  # the longest time the pinger itself paused within the gap


class Observer:
    """On a lab's client host; a context manager. Safe to use from any thread."""

    def __init__(self, lab: Lab, guests: Sequence[str], interval: float) -> None:
        self._lab = lab
        self._interval = interval
        self.guests = tuple(guests)
        self._changed = threading.Condition()
        self._reports = {guest: Report() for guest in self.guests}
        self._pings: dict[str, memoryview] = {}
        self._pingers: list[HostProcess] = []
        self._stop_reader, self._stop_writer = os.pipe()
        self._listener = lab.client.socket()
        self._thread = threading.Thread(target=self._listen, name="observer", daemon=True)

    @classmethod
    def start(
        cls,
        lab: Lab,
        guests: Sequence[str] = (network.guest_address(),),
        *,
        interval: float = PING_INTERVAL,
    ) -> Self:
        """Ping these guests, by address, every `interval` seconds, and listen to them."""
        observer = cls(lab, guests, interval)
        observer._begin()
        return observer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop pinging and listening; what was seen can still be asked for."""
        for pinger in self._pingers:
            pinger.kill()
            pinger.wait()
        self._pingers.clear()
        if self._stop_writer >= 0:
            os.close(self._stop_writer)
            self._stop_writer = -1
            self._thread.join()
            os.close(self._stop_reader)

    def ping(self, guest: str, *, on: bool) -> None:
        """Go on pinging a guest, or leave that be: a paused one would get it all at once."""
        pinger = self._pingers[self.guests.index(guest)]
        pinger.send_signal(signal.SIGCONT if on else signal.SIGSTOP)

    # What was seen ----------------------------------------------------------------------------

    @staticmethod
    def mark() -> float:
        """Now, as a beginning or end for `longest_gap`."""
        return time.monotonic()

    def report(self, guest: str | None = None) -> Report:
        """All that the guest has said."""
        with self._changed:
            return self._reports[guest or self.guests[0]]

    def acked(self, guest: str | None = None) -> dict[str, int]:
        """The last write to each disk that the guest has acknowledged."""
        return dict(self.report(guest).acked)

    def wait_for(
        self, predicate: Callable[[Report], bool], timeout: float, guest: str | None = None
    ) -> Report:
        """Wait until what the guest said satisfies `predicate`; woken by every word of it."""
        guest = guest or self.guests[0]
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self._reports[guest]), timeout):
                raise TimeoutError(f"not within {timeout} s; last heard: {self._reports[guest]}")
            return self._reports[guest]

    def wait_progress(self, timeout: float = 30.0, guest: str | None = None) -> Report:
        """Wait until the guest ticks and has written to each of its disks, both from now on."""
        before = self.report(guest)

        def progressed(now: Report) -> bool:
            return now.ticks > before.ticks and all(
                now.acked.get(disk, -1) > number for disk, number in before.acked.items()
            )

        return self.wait_for(progressed, timeout, guest)

    def longest_gap(
        self, since: float, until: float | None = None, guest: str | None = None
    ) -> Gap:
        """Tell the longest time without an answer between two marks (the second: now)."""
        notes = self._pings[guest or self.guests[0]]
        begin = int(since * 1e9)
        end = time.monotonic_ns() if until is None else int(until * 1e9)
        count = notes[0]
        numbers = range(1, count + 1)
        first = bisect_left(numbers, begin, key=lambda number: notes[2 * number])
        last = bisect_left(numbers, end, key=lambda number: notes[2 * number])
        window = numbers[first:last]
        # Answers to pings of before count as answers of the window if they came within it.
        early = numbers[max(0, first - 5000) : last]
        came = sorted({begin, end, *(t for n in early if begin <= (t := notes[2 * n + 1]) <= end)})
        start, stop = max(pairwise(came), key=lambda pair: pair[1] - pair[0])
        sent = [start, *(t for n in window if start <= (t := notes[2 * n]) <= stop), stop]
        return Gap(
            seconds=(stop - start) / 1e9,
            start=start / 1e9,
            end=stop / 1e9,
            sent=len(window),
            lost=sum(not notes[2 * number + 1] for number in window),
            send_pause=max(b - a for a, b in pairwise(sent)) / 1e9,
        )

    def wait_answer(self, timeout: float = 30.0, guest: str | None = None) -> None:
        """Wait until the guest answers pings again."""
        notes = self._pings[guest or self.guests[0]]
        first = notes[0] + 1
        deadline = time.monotonic() + timeout
        while not any(notes[2 * n + 1] for n in range(first, notes[0] + 1)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no answer to a ping within {timeout} s")
            time.sleep(0.002)  # the notes are shared memory: there is nothing to wait on

    # How it is seen ---------------------------------------------------------------------------

    def _begin(self) -> None:
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((network.CLIENT_ADDRESS, REPORT_PORT))
        self._listener.listen()
        self._thread.start()
        for guest in self.guests:
            shared = os.memfd_create(f"pings of {guest}")
            os.ftruncate(shared, 16 * _MAX_PINGS)
            self._pings[guest] = memoryview(mmap.mmap(shared, 0)).cast("q")
            self._pingers.append(
                self._lab.client.popen(
                    [
                        sys.executable,
                        "-S",
                        "-m",
                        "lab.pinger",
                        guest,
                        str(round(self._interval * 1e9)),
                    ],
                    cwd=str(REPOSITORY),
                    stdin=shared,
                    stdout=None,
                    stderr=None,
                )
            )
            os.close(shared)

    def _listen(self) -> None:
        """Read what guests say until `stop`; the thread's whole life."""
        pending: dict[socket.socket, bytes] = {}
        with selectors.DefaultSelector() as selector, self._listener:
            selector.register(self._stop_reader, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._listener:
                        connection, (guest, _) = self._listener.accept()
                        connection.settimeout(0)
                        selector.register(connection, selectors.EVENT_READ, guest)
                        pending[connection] = b""
                        self._note_connection(guest)
                    elif isinstance(connection := key.fileobj, socket.socket):
                        rest = self._read(connection, key.data, pending[connection])
                        if rest is None:
                            selector.unregister(connection)
                            del pending[connection]
                            connection.close()
                        else:
                            pending[connection] = rest
                    else:
                        for connection in pending:
                            connection.close()
                        return

    def _note_connection(self, guest: str) -> None:
        with self._changed:
            if guest in self._reports:
                old = self._reports[guest]
                self._reports[guest] = replace(old, connections=old.connections + 1)

    def _read(self, connection: socket.socket, guest: str, rest: bytes) -> bytes | None:
        """Take in what has come; return the line that is not whole yet, None at the end."""
        try:
            data = connection.recv(65536)
        except OSError:
            return None
        if not data:
            return None
        *lines, rest = (rest + data).split(b"\n")
        with self._changed:
            if guest in self._reports:
                for line in lines:
                    self._reports[guest] = _after(self._reports[guest], line)
                self._changed.notify_all()
        return rest


def _after(old: Report, line: bytes) -> Report:
    """Return the report that `line` makes of the old one."""
    match = _REPORT.fullmatch(line)
    if not match:  # the rest of a line whose beginning went down with a broken connection
        return old
    kind, boot, one, two = ("" if word is None else word.decode() for word in match.groups())
    if boot != old.boot:
        old = Report(
            boot=boot,
            boots=(*old.boots, boot),
            errors=old.errors,
            connections=old.connections,
        )
    match kind:
        case "up":
            return replace(old, up=True)
        case "tick":
            errors = old.errors
            if int(one) <= old.ticks:
                errors = (*errors, f"ticks went back from {old.ticks} to {one}")
            return replace(old, ticks=int(one), uptime=float(two), errors=errors)
        case "ack":
            errors = old.errors
            if int(two) <= old.acked.get(one, -1):
                errors = (*errors, f"{one} went back from {old.acked[one]} to {two}")
            return replace(old, acked={**old.acked, one: int(two)}, errors=errors)
        case _:
            return replace(old, errors=(*old.errors, line.decode()))
