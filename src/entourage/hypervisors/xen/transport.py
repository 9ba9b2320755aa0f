"""The program that xl runs in the place of ssh: ``python -I -m … transport SOCKET``.

Its standard input and output are xl's. It asks the engine, on a unix socket in a directory that is
root's alone, for the ssh command that carries the stream to the target, and then does what `Sender`
decides. The stream itself goes from pipe to pipe in the kernel (splice); only its header, with the
domain's configuration, is read.

What it says to the engine, and hears from it, are lines: a `Word`, and after ``broken`` why.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from entourage.errors import HypervisorError, plain_words
from entourage.hypervisors.xen import header
from entourage.hypervisors.xen.sender import Do, Effects, Happened, Phase, Sender, Tell, ToXl, Word

_XL_IN, _XL_OUT = 0, 1
_CHUNK = 1 << 20
_DRAINS_WITHIN = 5.0
"""Seconds for the target to destroy its copy before the domain runs again here regardless."""
_SAY_EVERY = 0.5
_LOOK_EVERY = 0.25
_SILENT = 1.0
"""Seconds without a word after which an engine that says one every `ALIVE_EVERY` is frozen."""


class Transport:
    """One migration's stream.

    Args:
        engine: Connected; its first line says where the stream goes, and what changes in it.
    """

    def __init__(self, engine: socket.socket) -> None:
        self._engine = engine
        self._heard = b""
        self._sender = Sender()
        self._selector = selectors.DefaultSelector()
        self._passed = 0
        self._said_at = 0.0
        self._over = False
        order: dict[str, Any] = json.loads(self._line())
        self._budget: float | None = order.get("budget")
        self._heard_at, self._stopped_at = time.monotonic(), 0.0
        self._drains = bool(order.get("drains", True))
        self._changes = header.Changes(**order["changes"])
        # A pipe has room again for each page that ssh has read, a socket only when most of it is
        # free: so the stream goes in large pieces.
        self._stream, theirs = socket.socketpair()
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHUNK)
        # Its output is nobody's: that it ends says that the target is through.
        with theirs:
            self._ssh = subprocess.Popen(
                order["ssh"], stdin=theirs.fileno(), stdout=subprocess.PIPE, start_new_session=True
            )
        with contextlib.suppress(OSError):  # what follows tells that ssh is gone
            self._stream.sendall(bytes.fromhex(order["secret"]))
        assert self._ssh.stdout is not None  # noqa: S101 - asked for above
        self._ended = self._ssh.stdout.fileno()
        with contextlib.suppress(OSError):
            fcntl.fcntl(_XL_IN, fcntl.F_SETPIPE_SZ, _CHUNK)

    def run(self) -> None:
        """Do all of it; returns when xl is to see its other end close."""
        self._do(self._sender.begin())
        if not self._over:
            self._pass_header()
        watched = ((_XL_IN, self._from_xl), (self._ended, self._gone), (self._engine, self._word))
        for source, handler in watched:
            self._selector.register(source, selectors.EVENT_READ, handler)
        patience = None if self._budget is None else _LOOK_EVERY
        while not self._over:
            for key, _ in self._selector.select(patience):
                if not self._over:
                    key.data()
            if not self._over and self._is_late():
                self._do(self._sender.happens(Happened.ENGINE_FROZEN))

    def _is_late(self) -> bool:
        """Whether the engine is frozen and the domain has stood still for as long as it may.

        An engine that was frozen before it had seen the domain stop has said nothing of that.
        """
        if self._budget is None:
            return False
        now = time.monotonic()
        silent = now - self._heard_at
        stopped = now - self._stopped_at if self._stopped_at else 0.0
        return silent >= _SILENT and max(silent, stopped) >= self._budget

    def _pass_header(self) -> None:
        """The beginning of the stream, which says what the target's machine is made of."""
        try:
            fixed = self._exactly(header.SIZE)
            rest = self._exactly(header.more(fixed))
            self._stream.sendall(header.rewritten(fixed, rest, self._changes))
            self._stream.setblocking(False)  # noqa: FBT003 - the standard library's signature
        except EOFError:
            self._do(self._sender.happens(Happened.XL_CLOSED))
        except (HypervisorError, OSError) as error:
            self._do((Tell(Word.BROKEN, plain_words(error)), Do.END))

    def _exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            data = os.read(_XL_IN, count - len(got))
            if not data:
                raise EOFError
            got += data
        return got

    # What arrives

    def _from_xl(self) -> None:
        if self._sender.phase is not Phase.STREAM:
            data = os.read(_XL_IN, _CHUNK)
            if data:
                self._do(self._sender.xl_said(data))
            else:
                self._do(self._sender.happens(Happened.XL_CLOSED))
            return
        try:
            moved = os.splice(_XL_IN, self._stream.fileno(), _CHUNK, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            self._wait_for_room()
            return
        except OSError:
            self._gone()
            return
        if not moved:
            self._do(self._sender.happens(Happened.XL_CLOSED))
            return
        self._passed += moved
        if time.monotonic() >= self._said_at + _SAY_EVERY:
            self._said_at = time.monotonic()
            self._say(f"passed {self._passed}")

    def _wait_for_room(self) -> None:
        """The stream is faster than the network: listen to xl again once there is room."""

        def room() -> None:
            self._selector.unregister(self._stream)
            self._selector.register(_XL_IN, selectors.EVENT_READ, self._from_xl)

        self._selector.unregister(_XL_IN)
        self._selector.register(self._stream, selectors.EVENT_WRITE, room)

    def _gone(self) -> None:
        """Ssh has ended, or is about to."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._ended)
        self._do(self._sender.happens(Happened.STREAM_CLOSED))

    def _word(self) -> None:
        try:
            data = self._engine.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(self._engine)
            self._do(self._sender.happens(Happened.ENGINE_GONE))
            return
        *lines, self._heard = (self._heard + data).split(b"\n")
        self._heard_at = time.monotonic()
        for word in (Word(line.decode()) for line in lines):
            if word is Word.STOPPED:
                self._stopped_at = self._heard_at
            self._do(self._sender.hear(word))

    # What is to be done

    def _do(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case ToXl(data):
                    with contextlib.suppress(OSError):  # it has gone: its end is seen next
                        self._write(_XL_OUT, data)
                case Tell(word, why):
                    self._say(f"{word.value} {' '.join(why.split())}".strip())
                case Do.DRAIN:
                    self._drain()
                case Do.END:
                    self._over = True

    def _drain(self) -> None:
        """The target's receiver destroys its copy when it sees the end; give it time for that.

        Of a domain that is saved there is none.
        """
        if not self._drains:
            return
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_WR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._ssh.wait(_DRAINS_WITHIN)

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._engine.sendall(line.encode() + b"\n")

    @staticmethod
    def _write(descriptor: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    def _line(self) -> bytes:
        while b"\n" not in self._heard:
            data = self._engine.recv(_CHUNK)
            if not data:
                raise EOFError
            self._heard += data
        line, self._heard = self._heard.split(b"\n", 1)
        return line

    def close(self) -> None:
        """Leave nothing behind; ssh first, which would hold xl's pipe open."""
        with contextlib.suppress(ProcessLookupError):
            self._ssh.kill()
        self._ssh.wait()
        self._stream.close()
        self._engine.close()


def main(arguments: list[str]) -> int:
    """Carry one migration's stream."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    [path] = arguments
    engine = socket.socket(socket.AF_UNIX)
    try:
        engine.connect(path)
        transport = Transport(engine)
    except (OSError, EOFError) as error:
        sys.stderr.write(f"entourage: the engine is gone: {plain_words(error)}\n")
        return 1
    try:
        transport.run()
    finally:
        transport.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
