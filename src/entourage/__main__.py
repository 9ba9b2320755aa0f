"""Where ``entourage`` starts; also ``python -m entourage``.

``--version`` and ``agent`` are answered before anything is imported that they do not need: the
agent's start is part of every migration.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

UNWRITTEN = 120
"""The exit status of what was done, and could not be told; Python's own is the same."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status, as ``docs/cli.md`` lists them."""
    words = list(sys.argv[1:] if argv is None else argv)
    match words:
        case ["--version"]:
            from entourage.version import __version__  # noqa: PLC0415 - only where it is needed

            return _tell(f"entourage {__version__}\n")
        case ["agent", *options] if not {"-h", "--help"} & set(options):
            from entourage.cli.agent import agent  # noqa: PLC0415 - without what draws and parses

            return agent(options)
        case ["attend", "--answer", *options]:
            from entourage.cli.answer import answer  # noqa: PLC0415 - same

            return answer(options)
        case _:
            from entourage.cli.app import run  # noqa: PLC0415 - same

            return run(words)


def command() -> NoReturn:
    """The program: ``main``, and then the end, at once.

    Python would take itself to pieces first: at both ends of a migration a tenth of a second of a
    processor that the guest, just arrived, could do with. All threads are daemons, and nothing is
    registered for the exit.
    """
    status = main()
    unwritten = 0 if status == UNWRITTEN else _tell("")
    os._exit(status or unwritten)


def _tell(text: str) -> int:
    """Write it, and all that has not been written yet; the exit status where that cannot be."""
    try:
        print(end="", file=sys.stderr, flush=True)  # noqa: T201 - nothing heavier is imported here
        print(text, end="", flush=True)  # noqa: T201 - same
    except BrokenPipeError:
        pass  # who listened has heard enough
    except OSError as error:
        with contextlib.suppress(OSError):  # nor can that be told
            message = f"entourage: cannot write its output: {error.strerror}"
            print(message, file=sys.stderr, flush=True)  # noqa: T201 - same
        return UNWRITTEN
    return 0


if __name__ == "__main__":
    command()
