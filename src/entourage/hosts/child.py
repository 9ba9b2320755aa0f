"""A link to an agent that is a process of this host's: ssh to another one, or a proxy agent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

from entourage.errors import LinkError, LinkLost, plain_words
from entourage.hosts.link import SILENT, Link
from entourage.hosts.programs import kill

Explain = Callable[[int | None, Sequence[str]], LinkLost]
"""From a process's exit status (None: it has none yet) and its last lines: what they mean."""

_LINES = 20
_ENDS_WITHIN, _OF_SILENT, _LOOK_AGAIN = 2.0, 0.1, 0.1  # seconds


@contextlib.asynccontextmanager
async def linked(
    argv: Sequence[str],
    *,
    peer: str,
    silence: float,
    explain: Explain,
    remedy: str,
    first_word: float | None = None,
    environment: Mapping[str, str] | None = None,
    session: bool = False,
) -> AsyncGenerator[Link]:
    """Start a program and speak with it over its standard input and output; both end together.

    Args:
        argv: The program, and its arguments.
        peer: What the other end is called in messages.
        silence: Seconds without a word after which the link is lost.
        explain: What its end means.
        remedy: What to do where it cannot be started.
        first_word: The same before its first word, where that may take longer.
        environment: Its own; None: this process's.
        session: Start it in a session of its own, out of reach of this terminal's Ctrl-C.

    Raises:
        LinkError: It cannot be started. All else shows at the first call, as LinkLost.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
            env=environment,
            start_new_session=session,
        )
    except OSError as error:
        raise LinkError(f"{argv[0]} cannot be run: {plain_words(error)}", remedy=remedy) from error
    assert process.stdin is not None  # noqa: S101 - asked for above
    assert process.stdout is not None  # noqa: S101
    assert process.stderr is not None  # noqa: S101
    said: deque[str] = deque(maxlen=_LINES)
    stderr = asyncio.create_task(_keep(process.stderr, said))

    async def last_words() -> LinkLost:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.shield(stderr)
                await process.wait()
        return explain(process.returncode, said)

    link = Link(
        process.stdout,
        process.stdin,
        peer=peer,
        silence=silence,
        first_word=first_word,
        last_words=last_words,
        noisy=True,
    )
    serving = asyncio.create_task(link.serve())
    try:
        yield link
    finally:
        link.close()
        try:
            await _end(process, link)
        finally:  # also where who waits for it is cancelled
            for task in (serving, stderr):
                task.cancel()
            await asyncio.gather(serving, stderr, return_exceptions=True)
        await link.settle()  # what was heard before is acted on under the caller's lock


async def _keep(stream: asyncio.StreamReader, said: deque[str]) -> None:
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # a line longer than the limit: asyncio has dropped it
            continue
        if not line:
            return
        said.append(line.decode(errors="replace").strip())


async def _end(process: asyncio.subprocess.Process, link: Link) -> None:
    """The agent ends by itself when its input ends; a network that is gone keeps ssh waiting.

    Args:
        process: ssh, or a proxy agent; killed where it does not end, or once nothing is heard.
        link: What is read from it, though it is closed.
    """
    ended = asyncio.ensure_future(process.wait())
    until = time.monotonic() + _ENDS_WITHIN
    try:
        while not ended.done() and time.monotonic() < until and link.quiet < SILENT:
            await asyncio.wait({ended}, timeout=_LOOK_AGAIN)
        await asyncio.wait({ended}, timeout=_OF_SILENT)
    finally:
        if not ended.done():
            await kill(process)
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
