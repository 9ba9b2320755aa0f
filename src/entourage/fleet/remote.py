"""Hosts of a fleet, asked and told by the commands that a user would type there, through ssh.

What a host answers is JSON of its own Entourage, which may be older or newer: unknown fields are
left aside, and what is missing is taken to be nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import Meta

from entourage.errors import EntourageError, plain_words
from entourage.fleet.decoded import NotUnderstoodError, json_of
from entourage.fleet.fleetfile import FleetFile, HostEntry
from entourage.hosts.programs import kill
from entourage.hosts.ssh import ssh_command
from entourage.settings.model import Settings

_ANSWERS_WITHIN: Final = 60.0  # seconds, of what only asks
_TESTS_WITHIN: Final = 180.0
_ONE_MORE_WITHIN: Final = 30.0  # seconds, for each domain after the first one
_SETTLES_WITHIN: Final = 300.0
_NO_SSH: Final = 255
"""What ssh ends with where it has not reached the host, or has lost it."""
_WRONG_USAGE: Final = 2
"""What an Entourage that knows no ``--also`` ends with."""
_LINE: Final = 1 << 22  # bytes
_MOST: Final = 1 << 26  # bytes of an answer that are read: of some hundred thousand domains


Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 62)]
Text: TypeAlias = Annotated[str, Meta(max_length=255, pattern=r"^[^\x00]*\Z")]
Uuid: TypeAlias = Annotated[str, Meta(max_length=36, pattern=r"^[^\x00]*\Z")]
"""No database takes more, and PostgreSQL no zero."""
Refused: TypeAlias = tuple[str, str]
"""What is against a move, and what to do about it."""


class DomainThere(msgspec.Struct, frozen=True, kw_only=True):
    """A domain that runs on a host, as `entourage room --json` has it."""

    name: Text
    uuid: Uuid
    state: str = ""
    memory: Count = 0
    devices: Mapping[str, Count] = {}


class HeldThere(msgspec.Struct, frozen=True, kw_only=True):
    """Why a host's device is not free, as `entourage room --json` has it."""

    reason: str
    remedy: str = ""


class CordonThere(msgspec.Struct, frozen=True, kw_only=True):
    """A cordon, as `entourage room --json` has it."""

    name: str
    reason: str = ""


class RoomThere(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has, as `entourage room --json` says."""

    host: str
    memory: Count
    free: Count
    devices: Mapping[str, Count] = {}
    held: Mapping[str, HeldThere] = {}
    arrivals: Annotated[int, Meta(ge=1)] | None = None
    cordons: Sequence[CordonThere] = ()
    arriving: Sequence[str] = ()
    domains: Sequence[DomainThere] = ()
    off: Sequence[str] = ()
    off_domains: Sequence[DomainThere] = ()
    claimed: Sequence[str] = ()
    limited: bool = False


class StandingThere(msgspec.Struct, frozen=True, kw_only=True):
    """A migration that is under way or not settled, as `entourage status --json` has it."""

    domain: str
    uuid: str
    role: str
    record: str
    settled: bool
    peer: str = ""
    doing: str = ""
    remedy: str = ""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended.

    Attributes:
        status: Its exit status; 255 where ssh did not reach the host, or lost it.
        events: Those of its last lines of JSON that are told at its end.
        said: What it wrote to standard error, in one line.
    """

    status: int
    events: Mapping[str, Any]
    said: str

    @property
    def is_lost(self) -> bool:
        """Whether ssh has lost the host: what the command does is not known."""
        return self.status == _NO_SSH


class Remote:
    """The hosts of a fleet.

    Args:
        fleet: Who they are.
        settings: This host's: ssh's options, and how Entourage is called there.
    """

    def __init__(self, fleet: FleetFile, settings: Settings) -> None:
        self.fleet = fleet
        self._settings = settings

    def with_hosts(self, entries: Sequence[HostEntry]) -> Remote:
        """The same with hosts that are in no fleet's file."""
        return Remote(self.fleet.with_hosts(entries), self._settings)

    async def room(self, host: str) -> RoomThere:
        """What a host has, and what runs there; raises EntourageError where it does not say."""
        return await self._asked(host, RoomThere, "room", "--json")

    async def standing(self, host: str) -> list[StandingThere]:
        """Which migrations are under way or not settled there; raises EntourageError."""
        return await self._asked(host, list[StandingThere], "status", "--json")

    async def test(
        self,
        names: Sequence[str],
        source: str,
        target: str,
        options: Sequence[str] = (),
        told: Callable[[], None] = lambda: None,
    ) -> Mapping[str, Sequence[Refused]]:
        """What is against each of some moves, with what to do about it.

        Args:
            names: The domains', one at least.
            source: The host that they run on.
            target: The one that they are to go to.
            options: More of the command.
            told: Is called after each.

        Raises:
            EntourageError: The source cannot be asked.
        """
        found: list[list[Refused]] = [[]]
        why: list[Refused] = []

        def heard(event: Mapping[str, Any]) -> None:
            match event.get("event"):
                case "device-refused":
                    where = f"{event.get('device', '')} on {event.get('host', '')}"
                    reason = f"{where}: {event.get('reason', '')}"
                    found[-1].append((reason, str(event.get("remedy", ""))))
                case "finished":
                    if event.get("outcome") != "can-move" and not found[-1]:
                        said = str(event.get("message", "")) or "it cannot be tested"
                        found[-1].append((said, str(event.get("remedy", ""))))
                    found.append([])
                    told()
                case _:
                    pass

        first, *others = names
        also = (f"--also={name}" for name in others)
        words = ("check", "--json", *options, *also, "--", first, self.as_others_see_it(target))
        within = _TESTS_WITHIN + _ONE_MORE_WITHIN * len(others)
        ended = await self._run(source, words, heard=heard, within=within)
        if others and ended.status == _WRONG_USAGE and not found[0] and len(found) == 1:
            alone = [await self.test([name], source, target, options, told) for name in names]
            return {name: one[name] for name, one in zip(names, alone, strict=True)}
        if len(found) <= len(names):  # it has ended before it was through
            why = [(self._why(ended, source, "check"), str(ended.events.get("remedy", "")))]
        return {
            name: found[number] if number < len(found) - 1 else why
            for number, name in enumerate(names)
        }

    async def migrate(
        self,
        name: str,
        source: str,
        target: str,
        options: Sequence[str],
        heard: Callable[[Mapping[str, Any]], None],
    ) -> Ended:
        """Have a domain move; where this is cancelled it moves on.

        Args:
            name: The domain's.
            source: The host that it runs on.
            target: The one that it goes to.
            options: More of the command.
            heard: Is told its events.

        Raises:
            EntourageError: ssh cannot be run.
        """
        command = ("migrate", "--json", *options, "--", name, self.as_others_see_it(target))
        return await self._run(source, command, heard=heard, within=None)

    async def recover(self, name: str, host: str) -> Ended:
        """Have what is in doubt there be settled; raises EntourageError where ssh cannot be run."""
        return await self._run(host, ("recover", "--", name), within=_SETTLES_WITHIN)

    async def abort(self, name: str, host: str) -> Ended:
        """Have a migration from there go back, if it still can."""
        return await self._run(host, ("abort", "--", name), within=_ANSWERS_WITHIN)

    async def cordon(self, host: str, name: str, reason: str) -> None:
        """Have a host take no domains; raises EntourageError."""
        words = ("cordon", f"--name={name}", f"--reason={reason}")
        self._must(await self._run(host, words, within=_ANSWERS_WITHIN), host, "cordon")

    async def uncordon(self, host: str, name: str) -> None:
        """Lift that; raises EntourageError."""
        words = ("uncordon", f"--name={name}")
        self._must(await self._run(host, words, within=_ANSWERS_WITHIN), host, "uncordon")

    def as_others_see_it(self, host: str) -> str:
        """What other hosts' ssh calls a host."""
        return self.fleet.entry(host).from_others or host

    def _must(self, ended: Ended, host: str, command: str) -> None:
        if ended.status:
            raise EntourageError(
                self._why(ended, host, command), host=host, remedy=f"ssh {host} entourage {command}"
            )

    def _why(self, ended: Ended, host: str, command: str) -> str:
        if ended.is_lost:
            return f"ssh does not reach {host}: {ended.said or 'it says nothing'}"
        said = str(ended.events.get("message", "")) or ended.said
        return said or f"`entourage {command}` on {host} ended with {ended.status}"

    async def _asked(self, host: str, kind: type[Any], *words: str) -> Any:
        status, out, said = await self._output(host, words)
        if status:
            ended = Ended(status=status, events={}, said=said)
            raise EntourageError(
                self._why(ended, host, words[0]),
                host=host,
                remedy=f"see whether `ssh {self._ssh_name(host)} entourage {words[0]}` works here",
            )
        try:
            return json_of(out, kind)
        except NotUnderstoodError as error:
            raise EntourageError(
                f"what `entourage {words[0]}` says there cannot be understood: {error.__cause__}",
                host=host,
                remedy="install the same version of Entourage on all hosts",
            ) from error

    async def _output(self, host: str, words: Sequence[str]) -> tuple[int, bytes, str]:
        process = await self._start(host, words)
        try:
            async with asyncio.timeout(_ANSWERS_WITHIN):
                out, err = await asyncio.gather(_read(process.stdout), _read(process.stderr))
                await process.wait()
        except TimeoutError:
            raise EntourageError(
                f"`entourage {words[0]}` does not answer within {_ANSWERS_WITHIN:g} s",
                host=host,
                remedy="see what keeps that host busy",
            ) from None
        finally:
            await kill(process)
        return process.returncode or 0, out, _one_line(err)

    async def _run(
        self,
        host: str,
        words: Sequence[str],
        *,
        within: float | None,
        heard: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> Ended:
        """Run a command there, and take its lines of JSON; raises EntourageError, also heard's."""
        process = await self._start(host, words)
        assert process.stdout is not None  # noqa: S101 - it was asked for
        assert process.stderr is not None  # noqa: S101 - same
        last: dict[str, Any] = {}
        errors: deque[bytes] = deque(maxlen=20)

        async def read_errors(stream: asyncio.StreamReader) -> None:
            async for line in _lines(stream):
                errors.append(line)

        async def read_events(stream: asyncio.StreamReader) -> None:
            async for line in _lines(stream):
                event = _event(line)
                if event.get("event") == "finished":
                    last.update(event)
                heard(event)

        try:
            async with asyncio.timeout(within), asyncio.TaskGroup() as group:
                group.create_task(read_errors(process.stderr))
                group.create_task(read_events(process.stdout))
                group.create_task(process.wait())
        except ExceptionGroup as group:
            others = group.split(EntourageError)[1]
            raise (others or group).exceptions[0] from group
        except TimeoutError:
            raise EntourageError(
                f"`entourage {words[0]}` has not ended within {within:g} s",
                host=host,
                remedy="see what keeps that host busy",
            ) from None
        finally:
            await kill(process)
        return Ended(status=process.returncode or 0, events=last, said=_one_line(b"".join(errors)))

    async def _start(self, host: str, words: Sequence[str]) -> asyncio.subprocess.Process:
        entry = self.fleet.entry(host)
        if host == socket.gethostname() and not entry.ssh:
            # Its own session: what moves here moves on where this process is killed.
            command = ["setsid", "--fork", "--wait", sys.executable, "-m", "entourage", *words]
        else:
            defaults = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
            command = ssh_command(self._ssh_name(host), self._settings, words, defaults=defaults)
        try:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                limit=_LINE,
                start_new_session=True,  # Ctrl-C is the controller's to understand
            )
        except OSError as error:
            raise EntourageError(
                f"{command[0]} cannot be run: {plain_words(error)}", remedy="install openssh-client"
            ) from error

    def _ssh_name(self, host: str) -> str:
        return self.fleet.entry(host).ssh or host


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What is said, line by line; one that is too long is left out."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line


async def _read(stream: asyncio.StreamReader | None) -> bytes:
    """What is said, as far as anybody would say so much; the rest is read and left out."""
    assert stream is not None  # noqa: S101 - it was asked for
    kept = bytearray()
    while chunk := await stream.read(1 << 16):
        kept += chunk[: max(0, _MOST - len(kept))]
    return bytes(kept)


def _event(line: bytes) -> Mapping[str, Any]:
    with contextlib.suppress(NotUnderstoodError):
        return json_of(line, dict[str, Any])
    return {}


def _one_line(said: bytes) -> str:
    return " ".join(said.decode(errors="replace").replace("entourage: ", "").split())
