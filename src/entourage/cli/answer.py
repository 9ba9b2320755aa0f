"""``entourage attend --answer``: what another host's daemon starts by ssh. Imports next to nothing.

It hands its standard input and output to this host's daemon, and ends when either end does.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import sys
from collections.abc import Sequence

_CHUNK = 1 << 16


def answer(options: Sequence[str]) -> int:
    """Be the way between the two daemons; returns the exit status.

    Args:
        options: What follows on the command line: ``--config FILE``.
    """
    path = f"{_run_directory(options)}/attend/link"
    with socket.socket(socket.AF_UNIX) as daemon:
        try:
            daemon.connect(path)
        except OSError as error:
            print(  # noqa: T201 - ssh carries it to who asked
                f"entourage: nobody attends migrations here ({_why(path, error)}):"
                " start entourage-attend",
                file=sys.stderr,
                flush=True,
            )
            return 1
        _splice(daemon)
    return 0


def _why(path: str, error: OSError) -> str:
    """In words that nobody takes for those of a shell which has found no such program."""
    if error.errno in {errno.ENOENT, errno.ECONNREFUSED}:
        return f"nothing listens at {path}"
    return f"{path}: {error.strerror or error}"


def _run_directory(options: Sequence[str]) -> str:
    if run := os.environ.get("ENTOURAGE_RUN_DIR"):
        return run
    from pathlib import Path  # noqa: PLC0415 - seldom needed

    from entourage.settings.load import load_settings  # noqa: PLC0415 - same

    config = options[options.index("--config") + 1] if "--config" in options[:-1] else None
    return load_settings(Path(config) if config else None).paths.run


def _splice(daemon: socket.socket) -> None:
    """Carry bytes both ways until one of them ends."""
    with selectors.DefaultSelector() as ready:
        ready.register(0, selectors.EVENT_READ)
        ready.register(daemon, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                here = key.fd == 0
                try:
                    data = os.read(0, _CHUNK) if here else daemon.recv(_CHUNK)
                    if not data:
                        return
                    if here:
                        daemon.sendall(data)
                    else:
                        _write(data)
                except OSError:
                    return


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
