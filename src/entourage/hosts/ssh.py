"""Reaching another host with the system's ssh: the user's keys, configuration and agent apply."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from entourage.errors import LinkError, UsageError
from entourage.hosts.link import Link
from entourage.settings.model import Settings


def ssh_command(host: str, settings: Settings, remote: Sequence[str]) -> list[str]:
    """The argument list that runs ``remote`` on ``host``.

    Ctrl-C at the terminal goes to every program in the foreground: ssh must not end of it, because
    what happens then is ours to decide. So ssh starts with these signals ignored, and can still
    ask for a password.

    Raises:
        UsageError: The host's name or a setting cannot be meant.
    """
    if not host or host.startswith("-") or any(ord(char) < 32 or char.isspace() for char in host):  # noqa: PLR2004 - control characters
        raise UsageError(f"{host!r} is no host name", remedy="a name or address that ssh knows")
    try:
        command = shlex.split(settings.ssh.remote_command)
    except ValueError as error:
        raise UsageError(f"remote-command: {error}") from error
    if not command:
        raise UsageError("remote-command is empty", remedy="'entourage' or 'sudo entourage'")
    return [
        "env", "--ignore-signal=INT,QUIT,HUP,TSTP",
        "ssh", "-T", "-e", "none", "-o", "ServerAliveInterval=5", *settings.ssh.options,
        "--", host, shlex.join([*command, *remote]),
    ]  # fmt: skip


@contextlib.asynccontextmanager
async def connect(host: str, settings: Settings) -> AsyncGenerator[Link]:
    """A link to the agent that ssh starts on ``host``; both end with the context.

    Raises:
        LinkError: ssh cannot be run. That the host cannot be reached shows at the first call, as
            LinkLost with what ssh said.
    """
    argv = ssh_command(host, settings, ["agent"])
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )
    except OSError as error:
        raise LinkError(f"ssh cannot be run: {error}", remedy="install openssh-client") from error
    assert process.stdin is not None  # noqa: S101 - asked for above
    assert process.stdout is not None  # noqa: S101
    assert process.stderr is not None  # noqa: S101
    said: deque[str] = deque(maxlen=20)
    stderr = asyncio.create_task(_keep(process.stderr, said))

    async def last_words() -> tuple[str, str]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.shield(stderr)
        return _explained(host, said)

    link = Link(
        process.stdout,
        process.stdin,
        peer=host,
        silence=settings.migration.link_silence,
        last_words=last_words,
    )
    serving = asyncio.create_task(link.serve())
    try:
        yield link
    finally:
        link.close()
        await _end(process)
        for task in (serving, stderr):
            task.cancel()
        await asyncio.gather(serving, stderr, return_exceptions=True)


def _explained(host: str, said: Sequence[str]) -> tuple[str, str]:
    """What ssh or the agent said last is the best reason there is; and the remedy."""
    words = "; ".join(line for line in said if line)
    if "not found" in words or "No such file" in words:
        return words, f"install Entourage on {host}, or name it with --remote-command"
    return words, f"try `ssh {host} entourage --version`" if words else ""


async def _keep(stream: asyncio.StreamReader, said: deque[str]) -> None:
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # a line longer than the limit: asyncio has dropped it
            continue
        if not line:
            return
        said.append(line.decode(errors="replace").strip())


async def _end(process: asyncio.subprocess.Process) -> None:
    """The agent ends by itself when its input ends; a network that is gone keeps ssh waiting."""
    try:
        async with asyncio.timeout(2):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
