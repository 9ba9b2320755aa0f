"""Where the engine meets the system, and what stands there while it is simulated.

The modules that ask the system for the time, for randomness, for locks, for SQLite, for ssh or for
a hypervisor get the simulation's instead. ``simulated()`` puts them there, and takes them away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import logging
import os
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

from entourage.devices import registry as devices
from entourage.domain import ADDED
from entourage.handover import executor
from entourage.hosts import child, link, resources, slots, ssh, threads
from entourage.hypervisors import registry
from entourage.journal import file, journal, lock
from entourage.source import ask, migration, opening, plan, session
from entourage.target import agent


class Here:
    """What is simulated now: set by each simulation, read by what stands in for the system."""

    world: Any = None
    loop: Any = None


class Time:
    """``time``, as a process of a simulated host sees it; the hosts' clocks do not agree."""

    @staticmethod
    def monotonic() -> float:
        loop = Here.loop
        return loop.now + loop.current.booted

    @staticmethod
    def monotonic_ns() -> int:
        loop = Here.loop
        return int((loop.now + loop.current.booted) * 1e9)

    @staticmethod
    def time_ns() -> int:
        return int((1.7e9 + Here.loop.now) * 1e9)


class Secrets:
    """``secrets``, by the seed."""

    @staticmethod
    def token_bytes(size: int) -> bytes:
        return Here.world.rng.randbytes(size)

    @staticmethod
    def token_hex(size: int) -> str:
        return Here.world.rng.randbytes(size).hex()


class Uuids:
    """``uuid``, by the seed."""

    @staticmethod
    def uuid4() -> uuid.UUID:
        return uuid.UUID(bytes=Here.world.rng.randbytes(16), version=4)


class Open:
    """One open file of a lock; a deadman shares its parent's."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.holders = 1


class Locks:
    """``os`` and ``fcntl`` for the files that are locked: in memory, freed by a process's end."""

    O_RDWR, O_RDONLY, O_CREAT, O_CLOEXEC, O_NOFOLLOW = (
        os.O_RDWR,
        os.O_RDONLY,
        os.O_CREAT,
        os.O_CLOEXEC,
        os.O_NOFOLLOW,
    )
    LOCK_EX, LOCK_SH, LOCK_NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_NB

    def __init__(self) -> None:
        self.next = 1000
        self.files: dict[int, tuple[Open, Any]] = {}
        self.locked: dict[str, Open] = {}
        self.content: dict[str, bytes] = {}

    def open(self, path: Any, flags: int, mode: int = 0) -> int:
        name = str(path)
        if not flags & os.O_CREAT and name not in self.content:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)
        self.content.setdefault(name, b"")
        process = Here.loop.current
        self.next += 1
        self.files[self.next] = (Open(name), process)
        descriptor = self.next
        process.on_end.append(lambda: self.close(descriptor))
        return descriptor

    def dup(self, descriptor: int) -> Open:
        """The open file, kept beyond its process's end until `let_go`."""
        opened, _ = self.files[descriptor]
        opened.holders += 1
        return opened

    def let_go(self, opened: Open) -> None:
        opened.holders -= 1
        if not opened.holders and self.locked.get(opened.path) is opened:
            del self.locked[opened.path]

    def close(self, descriptor: int) -> None:
        found = self.files.pop(descriptor, None)
        if found is not None:
            self.let_go(found[0])

    def flock(self, descriptor: int, operation: int) -> None:
        opened, _ = self.files[descriptor]
        if self.locked.get(opened.path) not in (None, opened):
            raise BlockingIOError
        if operation & fcntl.LOCK_EX:
            self.locked[opened.path] = opened

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        self.content[self.files[descriptor][0].path] = data
        return len(data)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        return self.content[self.files[descriptor][0].path]

    def getpid(self) -> int:
        return 4711


def _nothing(*_: object) -> None:
    """Nothing."""


class _Locks:
    """Those of the world that is simulated now."""

    def __getattr__(self, name: str) -> Any:
        if Here.world is None:  # what a simulation has left is thrown away
            return _nothing
        return getattr(Here.world.locks, name)


class _Sqlite:
    """``sqlite3`` for the journal's file: connections to a simulated disk."""

    Error = sqlite3.Error
    Row = sqlite3.Row

    @staticmethod
    def connect(name: Any, **options: Any) -> Any:
        return Here.world.connect(str(name))


async def _undo(kind: str, spec: Any) -> None:
    await Here.world.undo(kind, spec)


def _reached(point: str) -> None:
    Here.world.point(point)


class _Asyncio:
    """``asyncio``, where programs are run."""

    @staticmethod
    def create_subprocess_exec(*argv: str, **options: Any) -> Any:
        return Here.world.subprocess(*argv, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


def _threaded(loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> asyncio.Future[Any]:
    """A thread of its own: the loop's does it at a moment of its choice."""
    return loop.run_in_executor(None, work)


class _Moment:
    def astimezone(self) -> _Moment:
        return self

    def isoformat(self) -> str:
        return "then"


class _Complaints(logging.Handler):
    """What the engine logs is said by the process that runs."""

    def emit(self, record: logging.LogRecord) -> None:
        if Here.world is not None:
            Here.world.logged(record.getMessage())


def _unraisable(about: Any) -> None:
    """An error where nobody can take it; of what a finished simulation has left, it is none."""
    if Here.world is not None and not Here.loop.over:
        Here.world.violated(f"unraisable: {about.exc_value!r} in {about.object!r}")


_ENGINE = tuple(
    f"entourage.{part}"
    for part in ("clock", "device_steps", "handover", "hosts", "journal", "source", "target")
)
"""What has the simulated time; a backend's own threads may still run in a test's process."""


def _timed() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if name.startswith(_ENGINE) and getattr(module, "time", None) is time:
            yield module


@contextlib.contextmanager
def simulated(backend: Any, added: dict[str, str]) -> Generator[None]:
    """Have the engine use the simulation's system while the context lasts.

    Args:
        backend: The only kind of hypervisor that there is.
        added: The classes of devices that only the simulation has.
    """
    replaced: list[tuple[Any, str, Any]] = []

    def put(where: Any, name: str, what: Any) -> None:
        replaced.append((where, name, getattr(where, name)))
        setattr(where, name, what)

    clock = SimpleNamespace(datetime=SimpleNamespace(now=_Moment))
    for module in _timed():
        put(module, "time", Time)
    put(link, "time", Time)
    for module in (session, plan):
        put(module, "secrets", Secrets)
    put(migration, "uuid", Uuids)
    put(migration, "dt", clock)
    put(journal, "_RESERVE", 1 << 10)
    put(agent, "_IDLES_FOR", 18.0)
    put(lock, "os", _Locks())
    put(lock, "fcntl", _Locks())
    put(slots, "os", _Locks())
    put(slots, "fcntl", _Locks())
    put(file, "sqlite3", _Sqlite)
    put(resources, "undo", _undo)
    put(executor, "reached", _reached)
    put(registry, "BUILT_IN", (backend,))
    put(registry, "plug_ins", tuple)
    for module in (child, ssh):
        put(module, "asyncio", _Asyncio())
    put(devices, "_entries", tuple)
    put(threads, "_begin", _threaded)
    put(opening, "socket", SimpleNamespace(gethostname=lambda: Here.loop.current.host.name))
    put(ask, "socket", opening.socket)
    put(agent, "socket", opening.socket)
    had = dict(ADDED)
    ADDED.update(added)
    put(sys, "unraisablehook", _unraisable)
    complaints = _Complaints()
    logger = logging.getLogger("entourage")
    logger.addHandler(complaints)
    was, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        Here.loop = None
        gc.collect()  # what simulations have left must not be unwound by the system's own means
        logger.propagate = was
        logger.removeHandler(complaints)
        ADDED.clear()
        ADDED.update(had)
        for where, name, what in reversed(replaced):
            setattr(where, name, what)
