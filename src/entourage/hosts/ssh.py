"""Reaching another host with the system's ssh: the user's keys, configuration and agent apply."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shlex
import signal
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

from entourage.errors import LinkLost, NoAgent, UsageError
from entourage.hosts.child import linked
from entourage.hosts.filters import kept
from entourage.hosts.link import Link
from entourage.hosts.programs import kill, read_out
from entourage.hosts.threads import in_thread
from entourage.settings.model import Settings

LOGIN_WITHIN = 120.0
"""Seconds for the agent's first word where somebody types a password: sshd's LoginGraceTime."""
_LOGIN_UNASKED = 30.0  # the same where nobody does: a host may have to wait for a name server
_LOOK_AGAIN = 0.02  # seconds
_PROXIES = frozenset({"proxyjump", "proxycommand"})
_CONFIGURED_WITHIN = 5.0  # seconds
_configurations: dict[tuple[str, ...], Mapping[str, str]] = {}
_NO_COMMAND = 127
"""What a shell ends with where it has found no such command."""


def ssh_command(
    host: str, settings: Settings, remote: Sequence[str], *, defaults: Sequence[str] = ()
) -> list[str]:
    """The argument list that runs ``remote`` on ``host``.

    Ctrl-C at the terminal goes to every program in the foreground: ssh must not end of it, because
    what happens then is ours to decide. So ssh starts with these signals ignored, and can still
    ask for a password.

    Args:
        host: Its name, as ssh knows it.
        settings: ssh's options, and how Entourage is called there.
        remote: What to run there, Entourage's name left out.
        defaults: More of ssh's options, for where the settings have no others.

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
        "ssh", "-T", "-e", "none", "-o", "ServerAliveInterval=5", *settings.ssh.options, *defaults,
        "--", host, shlex.join([*command, *remote]),
    ]  # fmt: skip


async def configuration(host: str, settings: Settings) -> Mapping[str, str]:
    """What ssh's configuration says of a host, by ``ssh -G``; nothing where it cannot be asked.

    It is asked once: a second link may be wanted while the guest stands still.
    """
    command = ("ssh", "-G", *settings.ssh.options, "--", host)
    if command not in _configurations:
        _configurations[command] = await _asked(command)
    return _configurations[command]


async def _asked(command: Sequence[str]) -> Mapping[str, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, start_new_session=True
        )
    except OSError:
        return {}
    try:
        async with asyncio.timeout(_CONFIGURED_WITHIN):
            said, _ = await process.communicate()
    except TimeoutError:
        return {}
    finally:
        if process.returncode is None:  # a "Match exec" runs whatever it likes
            os.killpg(process.pid, signal.SIGKILL)
            await kill(process)
    lines = (line.partition(" ") for line in said.decode(errors="replace").splitlines())
    return {key: value.strip() for key, _, value in lines}


@contextlib.asynccontextmanager
async def start_agent(
    host: str, settings: Settings, remote: Sequence[str] = ("agent",)
) -> AsyncGenerator[Link]:
    """A link to the agent that ssh starts on ``host``; both end with the context.

    Args:
        host: Its name, as ssh knows it.
        settings: This host's.
        remote: What else of Entourage is to be started there instead.

    Raises:
        LinkError: ssh cannot be run. That the host cannot be reached shows at the first call, as
            LinkLost with what ssh said; that it has no Entourage, as NoAgent.
    """

    def explain(status: int | None, said: Sequence[str]) -> LinkLost:
        return _explained(host, status, said)

    ssh_command(host, settings, [])  # the user is told first what he has typed wrongly
    silence, known = settings.migration.link_silence, await configuration(host, settings)
    asks = known.get("batchmode") != "yes" and _somebody_is_there()
    # While somebody types, ssh hears nothing; that the agent is gone, the link finds out. It goes
    # before what the user's ssh has configured.
    defaults = ["-o", f"ServerAliveCountMax={math.ceil(LOGIN_WITHIN / 5)}"] if asks else []
    if known and known.get("connecttimeout", "none") == "none" and not _PROXIES.intersection(known):
        defaults += ["-o", f"ConnectTimeout={math.ceil(silence)}"]
    async with linked(
        ssh_command(host, settings, remote, defaults=defaults),
        peer=host,
        silence=silence,
        first_word=max(LOGIN_WITHIN if asks else _LOGIN_UNASKED, silence),
        explain=explain,
        remedy="install openssh-client",
    ) as link:
        yield link


@contextlib.asynccontextmanager
async def forwarded(host: str, settings: Settings, sockets: Sequence[str]) -> AsyncGenerator[None]:
    """Sockets of this host, which ssh connects to those of the same paths on another one.

    What listens there need not be there yet. Only this user can connect to them here.

    Args:
        host: Its name, as ssh knows it.
        settings: This host's.
        sockets: Their paths; the directories are there.

    Raises:
        LinkLost: They cannot be had.
    """
    *command, _separator, _host, _command = ssh_command(host, settings, [])
    options = [
        # A master would keep what it forwards when this one ends.
        *("-o", "ControlPath=none", "-o", "ControlMaster=no"),
        *("-o", "StreamLocalBindMask=0177", "-o", "StreamLocalBindUnlink=yes"),
        *(word for path in sockets for word in ("-L", f"{path}:{path}")),
    ]
    # Both ends of it end with this process, however that ends: nothing is written to the pipe.
    process = await asyncio.create_subprocess_exec(
        *command, *options, "--", host, "cat", stdin=PIPE, stdout=DEVNULL, stderr=PIPE
    )
    said = asyncio.create_task(kept(process.stderr))
    try:
        await _await_sockets(host, process, sockets, said)
        yield
    finally:
        await kill(process)
        await read_out(said)
        await in_thread(_unlink, sockets)


async def _await_sockets(
    host: str,
    process: asyncio.subprocess.Process,
    sockets: Sequence[str],
    said: asyncio.Task[str],
) -> None:
    """Wait until ssh has logged in, and listens."""
    asks = _somebody_is_there()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOGIN_WITHIN if asks else _LOGIN_UNASKED):
            while process.returncode is None and not all(map(_is_socket, sockets)):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(_LOOK_AGAIN)
            if process.returncode is None:
                return
    words = " ".join((await said).split()) if process.returncode is not None else ""
    raise LinkLost(
        f"ssh forwards no sockets{words and ': '}{words}",
        host=host,
        remedy="sshd there needs AllowStreamLocalForwarding, and a login as the user whose"
        " directory it is",
    )


def _unlink(sockets: Sequence[str]) -> None:
    for path in sockets:
        Path(path).unlink(missing_ok=True)


def _is_socket(path: str) -> bool:
    return Path(path).is_socket()


def _somebody_is_there() -> bool:
    """Whether ssh has a terminal to ask at."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _explained(host: str, status: int | None, said: Sequence[str]) -> LinkLost:
    """What ssh or the agent said last is the best reason there is; and the remedy."""
    words = "; ".join(line for line in said if line)
    spoke = any(line.startswith("entourage: ") for line in said)
    missing = "not found" in words or "No such file" in words
    if status == _NO_COMMAND or (missing and not spoke):
        remedy = (
            f"install Entourage on {host}, or name it with --remote-command; a domain of libvirt's"
            f" can also move to qemu+ssh://{host}/system"
        )
        return NoAgent(words, remedy=remedy)
    return LinkLost(words, remedy=f"try `ssh {host} entourage --version`" if words else "")
