"""Stops an Entourage on a host at named points (``ENTOURAGE_POINTS``) while a test wants that."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

_PATIENCE = 60.0
_LOOK_EVERY = 0.5  # seconds between two looks whether it still lives


class HasPaths(Protocol):
    """A host whose files this process can name."""

    def path(self, path: str) -> Path:
        """Return a file of the host's as a path here."""
        ...


class Points:
    """Listens to the points of programs on one host; a context manager.

    Args:
        host: Where the programs run.
        hold: The points at which they are to stop until ``pass_on``, each the first time only.
    """

    def __init__(self, host: HasPaths, *hold: str) -> None:
        # Nothing looks for leftovers there, and a power cut may leave it.
        self.path = f"/var/log/points.{secrets.token_hex(8)}"
        self.env = {"ENTOURAGE_POINTS": self.path}
        self._file = host.path(self.path)
        self._hold = set(hold)
        self._held: dict[str, socket.socket] = {}
        self._passed: list[str] = []
        self._let_go = False
        self._reading: socket.socket | None = None
        self._changed = threading.Condition()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._file))
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._serve, name="points", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._let_go:
            self.let_go()

    def let_go(self) -> None:
        """Hold nobody any more, nor the host's file system: before its power is cut."""
        self._let_go = True
        self.open()
        self._listener.shutdown(socket.SHUT_RDWR)
        with self._changed, contextlib.suppress(OSError):
            if self._reading is not None:  # who was stopped before it said where it is never will
                self._reading.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._file.unlink()

    def wait(self, point: str, alive: Callable[[], bool], patience: float = _PATIENCE) -> None:
        """Wait until a program stands at this point.

        Args:
            point: Its name.
            alive: Whether the program still lives.
            patience: Seconds that it has to get there.

        Raises:
            TimeoutError: It does not get there, or is not alive any more.
        """
        deadline = time.monotonic() + patience
        with self._changed:
            while not self._changed.wait_for(lambda: point in self._held, _LOOK_EVERY):
                if time.monotonic() > deadline or not alive():
                    raise TimeoutError(f"{point} is not reached; passed: {self._passed}")

    def pass_on(self, point: str) -> None:
        """Let the program that stands at this point go on."""
        with self._changed:
            held = self._held.pop(point)
        _answer(held)

    def open(self) -> None:
        """Let everybody go on, and hold nobody any more."""
        with self._changed:
            self._hold.clear()
            held, self._held = self._held, {}
        for connection in held.values():
            _answer(connection)

    def passed(self, point: str) -> bool:
        """Whether a program was at this point."""
        with self._changed:
            return point in self._passed

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # it was shut down
                return
            with self._changed:
                self._reading = None if self._let_go else connection
            with contextlib.suppress(OSError):
                point = "" if self._let_go else connection.recv(256).decode().strip()
                with self._changed:
                    self._reading = None
                    self._passed.append(point)
                    if point in self._hold:
                        self._hold.discard(point)
                        self._held[point] = connection
                        self._changed.notify_all()
                        continue
            _answer(connection)


def _answer(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):  # who asked may have been killed
        connection.sendall(b"\n")
