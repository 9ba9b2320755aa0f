"""``entourage agent``: what ssh starts on the target. Imports nothing that it does not need."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from entourage.errors import EntourageError, UsageError

_ORIGINAL = "SSH_ORIGINAL_COMMAND"
_NOT_FORCED = ("offline", "saves", "proxy", "local")
"""What a key with ``--forced`` may not have: it would be held to less than a stranger is to be."""


@dataclass
class _Words:
    """The command's options.

    Attributes:
        config: The settings file; None: where this host has it.
        source: The name of the one source that the caller's key stands for.
        forced: This is the command of a key (sshd sets what was asked for in the environment).
        proxy: A source on this same host has started it, for a target without Entourage.
        local: A process of this same host has started it, to save or restore a machine.
        saves: A source has started it, which saves machines on this host.
        offline: A source has started it, which moves a domain that is off.
        join: Hand a stream to a running agent: its socket, and what the stream is.
    """

    config: str | None = None
    source: str = ""
    forced: bool = False
    proxy: bool = False
    local: bool = False
    saves: bool = False
    offline: bool = False
    join: tuple[str, str] | None = None


def agent(options: Sequence[str]) -> int:
    """Serve one link on standard input and output; returns the exit status.

    Args:
        options: What follows ``agent`` on the command line.
    """
    try:
        words = _understood(options)
        if words.forced:
            words = _as_asked(words, os.environ.get(_ORIGINAL, ""))
            if words is None:
                return _version()
        return _run(words)
    except EntourageError as error:
        from entourage.cli.tell import tell  # noqa: PLC0415 - seldom needed

        return tell(error)
    except KeyboardInterrupt:
        from entourage.cli.tell import INTERRUPTED  # noqa: PLC0415 - seldom needed

        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - ssh shows the source one line, not a traceback
        from entourage.cli.tell import tell_bug  # noqa: PLC0415 - seldom needed

        return tell_bug(error, verbose=False)


def _run(words: _Words) -> int:
    if words.join is not None:
        return _join(words, *words.join)
    from entourage.settings.load import load_settings  # noqa: PLC0415 - what fails is told
    from entourage.target.caller import Caller  # noqa: PLC0415 - what fails in it is told
    from entourage.target.serve import serve  # noqa: PLC0415 - same

    settings = load_settings(_config(words))
    if words.offline:
        from entourage.offline import target  # noqa: PLC0415 - seldom needed

        asyncio.run(target.serve(settings, Caller(source=words.source)))
        return 0
    if words.saves:
        from entourage.hosts.proxy_agent import proxy_settings  # noqa: PLC0415 - seldom needed

        # Who may log in, and give it no other command, is the user whose directory it is.
        settings = proxy_settings(settings)
        words.proxy = words.local = True
    asyncio.run(serve(settings, Caller(proxy=words.proxy, local=words.local, source=words.source)))
    return 0


def _join(words: _Words, path: str, what: str) -> int:
    """Hand a stream to an agent; with a forced command only to one of this host's."""
    from entourage.hypervisors.xen.join import join  # noqa: PLC0415 - without the agent

    if words.forced:
        from entourage.settings.load import load_settings  # noqa: PLC0415 - what fails is told

        run = re.escape(str(Path(load_settings(_config(words)).paths.run)))
        ours = re.fullmatch(rf"{run}/xen-[0-9A-Za-z-]+\.incoming/streams", path)
        if not ours or not re.fullmatch(r"memory|disk [A-Za-z][A-Za-z0-9_.-]{0,30}", what):
            raise UsageError(f"{path} is no socket of an agent's streams here")
    return join(path, what)


def _config(words: _Words) -> Path | None:
    return Path(words.config) if words.config is not None else None


def _understood(options: Sequence[str]) -> _Words:
    words, rest = _Words(), list(options)
    while rest:
        match rest:
            case ["--config", path, *rest]:
                words.config = path
            case ["--source", name, *rest]:
                words.source = name
            case ["--forced", *rest]:
                words.forced = True
            case ["--proxy", *rest]:
                words.proxy = True
            case ["--local", *rest]:
                words.local = True
            case ["--saves", *rest]:
                words.saves = True
            case ["--offline", *rest]:
                words.offline = True
            case ["--join", path, what, *rest]:
                words.join = path, what
            case _:
                raise UsageError(
                    f"the agent does not know {rest[0]!r}",
                    remedy="`entourage agent --help` tells what there is",
                )
    if words.forced and (others := [one for one in _NOT_FORCED if getattr(words, one)]):
        raise UsageError(
            f"--forced only moves running machines in: not with --{others[0]}",
            remedy="leave one of them out",
        )
    return words


def _as_asked(forced: _Words, command: str) -> _Words | None:
    """What a caller may have whose key has this command and no other.

    Args:
        forced: The options of the key's command; they stand.
        command: What the caller asked for.

    Returns:
        The options to go by; None where the version is asked for.

    Raises:
        UsageError: Something else is asked for.
    """
    try:
        asked = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"this key only moves machines in: {error}") from error
    while asked and asked[0] not in {"agent", "--version"}:
        asked = asked[1:]  # the path of the program, sudo
    match asked:
        case ["--version"]:
            return None
        case ["agent"]:
            forced.join = None
        case ["agent", "--join", path, what]:
            forced.join = path, what
        case _:
            raise UsageError(
                "this key only moves machines in",
                remedy="use another key for anything else",
            )
    return forced


def _version() -> int:
    from entourage.version import __version__  # noqa: PLC0415 - seldom needed

    print(f"entourage {__version__}", flush=True)  # noqa: T201 - nothing heavier is imported
    return 0
