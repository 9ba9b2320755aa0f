"""The program at the end of a stream that is saved: ``python -I -m … keeper SOCKET``.

The transport (``transport.py``) starts it in the place of ssh, and gives it xl's stream on standard
input. It asks the engine, on a unix socket in a directory that is root's alone, for the socket at
which the save takes memory, passes the stream on to its very end, and says ``WHOLE``. Then it stays
until the transport has done: that it is gone says that the way is broken.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import Final

from entourage.errors import HypervisorError, plain_words
from entourage.hypervisors.xen.records import pass_on

WHOLE: Final = b"whole"
"""What the engine is told once all of the stream is on its way into the save."""
_IN: Final = 0
_CHUNK: Final = 1 << 20


class Passing:
    """From standard input to a socket.

    Args:
        target: The socket.
    """

    def __init__(self, target: socket.socket) -> None:
        self._target = target
        self._out, self._in = os.pipe2(os.O_CLOEXEC)

    def read(self, count: int) -> bytes:
        """See ``records.Way``."""
        got = bytearray()
        while len(got) < count:
            data = os.read(_IN, count - len(got))
            if not data:
                raise EOFError
            got += data
        self._target.sendall(got)
        return bytes(got)

    def move(self, count: int) -> None:
        """See ``records.Way``."""
        while count:
            moved = os.splice(_IN, self._in, min(count, _CHUNK))
            if not moved:
                raise EOFError
            count -= moved
            while moved:
                moved -= os.splice(self._out, self._target.fileno(), moved)


def _given(engine: socket.socket) -> int:
    """Where memory is taken; raises HypervisorError where the engine has ended instead."""
    _, given, _, _ = socket.recv_fds(engine, 1, 1)
    if not given:
        raise HypervisorError("entourage has ended")
    return given[0]


def _stay() -> None:
    """Wait until the transport has done; raises HypervisorError where more comes."""
    if os.read(_IN, 1):
        raise HypervisorError("xl sends more than its stream")


def main(arguments: list[str]) -> int:
    """Pass one stream on."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    [path] = arguments
    with contextlib.ExitStack() as ends:  # last: once one has ended, the engine ends all of this
        try:
            engine = ends.enter_context(socket.socket(socket.AF_UNIX))
            engine.connect(path)
            target = ends.enter_context(socket.socket(fileno=_given(engine)))
            target.setblocking(True)  # noqa: FBT003 - the standard library's signature
            pass_on(Passing(target))
            target.shutdown(socket.SHUT_WR)
            engine.sendall(WHOLE)
            _stay()
        except EOFError:
            return 1  # xl has given up, and says why itself
        except (HypervisorError, OSError) as error:
            sys.stderr.write(f"entourage: the stream cannot be saved: {plain_words(error)}\n")
            sys.stderr.flush()
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
