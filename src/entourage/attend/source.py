"""An attended migration from this host: the same as any of ours, but for who drives its machine."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
from collections.abc import AsyncGenerator, Callable

import msgspec

from entourage.attend.attended import Attended
from entourage.attend.shown import LastTry, write
from entourage.attend.words import ENDED, GO, Begin, Ended, Go
from entourage.clock import Clock
from entourage.devices.base import Options
from entourage.domain import Domain
from entourage.errors import (
    DomainBusy,
    EntourageError,
    LinkLost,
    MigrationFailed,
    Refused,
    UsageError,
    ours,
)
from entourage.events import AnyEvent, Finished, Listener
from entourage.hosts.link import Link
from entourage.hosts.route import Route
from entourage.hypervisors.attended.machine import AttendedMachine
from entourage.hypervisors.attended.switchover import PATIENCE, SourceSwitchover
from entourage.hypervisors.attended.toolstack import Shown, Toolstack
from entourage.settings.model import Settings
from entourage.source.greeting import greet, hello_of
from entourage.source.migration import Migration
from entourage.source.opening import Departing, held_here, refuse_itself
from entourage.source.request import Request
from entourage.source.session import Session


def attended_settings(settings: Settings) -> Settings:
    """The settings of a migration that somebody else drives: how it converges is their business."""
    migration = msgspec.structs.replace(
        settings.migration,
        max_blackout=min(settings.migration.max_blackout, PATIENCE),
        convergence=(),
    )
    return msgspec.structs.replace(settings, migration=migration)


class Departure:
    """One attended migration from this host.

    Args:
        attended: The domain.
        begin: What the target has asked.
        link: To the target, which has opened it.
        toolstack: This host's.
        hypervisor: The name of the attended hypervisor, on both hosts.
        settings: This host's.
        listening: Makes what takes the events, of the domain's UUID and name.

    Raises:
        UsageError: It is another migration than this host knows of.
        DomainBusy: One is under way.
    """

    def __init__(
        self,
        attended: Attended | None,
        begin: Begin,
        link: Link,
        *,
        toolstack: Toolstack,
        hypervisor: str,
        settings: Settings,
        listening: Callable[[str, str], Listener],
    ) -> None:
        if attended is None or attended.domain is None or not attended.expects(begin.nonce):
            raise UsageError(
                "this host does not attend that migration",
                remedy=f"`entourage attend --check` on {socket.gethostname()} says what it attends",
            )
        if attended.busy:
            raise DomainBusy(f"another migration of {attended.domain.name} is under way")
        self._attended = attended
        self._domain = attended.domain
        self._target = begin.target
        self._link = link
        self._toolstack = toolstack
        self._hypervisor = hypervisor
        self._settings = attended_settings(settings)
        self._emit = listening(attended.uuid, attended.domain.name)
        self._finished: Finished | None = None
        self._switchover = SourceSwitchover(begin.nonce, way_back=toolstack.way_back)
        attended.source = self._switchover
        link.on(GO, self._on_go)
        self._migration: Migration | None = None

    def interrupt(self) -> bool:
        """The daemon is stopped: go back; returns False where the hand-over has begun."""
        return self._migration is not None and self._migration.interrupt("the daemon is stopped")

    async def run(self) -> None:
        """Take its devices along; what became of it is in ``attended.last``."""
        request = Request(
            domain=self._domain.name, route=Route(host=self._target), settings=self._settings
        )
        failed: EntourageError | None = None
        try:
            self._migration = Migration(request, self._listen, self._opening)
            await self._migration.run()
        except EntourageError as error:
            failed = error
        except Exception as error:  # noqa: BLE001 - a bug of one migration's must not end the others
            failed = ours(error)
        finally:
            self._switchover.refuse("its devices are not attended any more")
            self._attended.source = None
            self._attended.renew()
        self._attended.last = self._last(failed)
        if failed is not None:
            # Before the target's hook fails virsh, whose user may ask here why.
            with contextlib.suppress(OSError):  # the daemon's next look writes it again
                write(self._settings, self._attended.shown(self._domain.name))
            refusals = failed.refusals if isinstance(failed, Refused) else ()
            ended = Ended(message=_where(failed), remedy=failed.remedy, refusals=refusals)
            with contextlib.suppress(LinkLost):
                self._link.tell(ENDED, ended)

    async def _on_go(self, _go: Go) -> None:
        self._switchover.go()

    def _listen(self, event: AnyEvent) -> None:
        if isinstance(event, Finished):
            self._finished = event
        self._emit(event)

    def _last(self, failed: EntourageError | None) -> LastTry:
        finished = self._finished
        outcome = finished.outcome if finished is not None else "failed"
        if isinstance(failed, MigrationFailed) and failed.recovery_errors:
            failed.message = "; ".join([failed.message, *failed.recovery_errors])
        return LastTry(
            target=self._target,
            ended=dt.datetime.now().astimezone().isoformat(timespec="seconds"),
            outcome=outcome,
            message=_where(failed) if failed else "",
            remedy=failed.remedy if failed else "",
            refusals=failed.refusals if isinstance(failed, Refused) else (),
            blackout=finished.blackout if finished is not None else None,
        )

    @contextlib.asynccontextmanager
    async def _opening(
        self,
        migration: str,
        name: str,
        route: Route,  # noqa: ARG002 - the target has opened the link
        *,
        connect: str | None,  # noqa: ARG002 - the domain is known
        settings: Settings,
        options: Options,
        tool: str | None,
        emit: Listener,
        clock: Clock,
    ) -> AsyncGenerator[Session]:
        """As ``open_session``, of a domain that is attended."""
        host, target = socket.gethostname(), self._target
        async with contextlib.AsyncExitStack() as stack:
            who = Departing(self._attended.uuid, name, target)
            journal, lock = held_here(stack, settings.paths, settings.journal, who)
            machine = await self._machine(self._domain)
            stack.push_async_callback(machine.close)
            hello = hello_of(migration, host, self._hypervisor)
            welcome = await greet(self._link, clock, hello)
            refuse_itself(welcome, journal, who)
            yield Session(
                migration=migration,
                kind="move",
                host=host,
                source=host,
                target=target,
                hypervisor=self._hypervisor,
                hypervisor_there=self._hypervisor,
                settings=settings,
                options=options,
                tool=tool,
                machine=machine,
                journal=journal,
                lock=lock,
                link=self._link,
                welcome=welcome,
                clock=clock,
                emit=emit,
                held=stack,
            )

    async def _machine(self, domain: Domain) -> AttendedMachine:
        uuid = self._attended.uuid
        watch = await self._toolstack.watch(uuid)
        try:
            shown = await self._toolstack.shown(uuid)
        except BaseException:
            await watch.close()
            raise
        return AttendedMachine(
            self._toolstack,
            domain,
            was_running=shown is not Shown.PAUSED,
            switchover=self._switchover,
            socket=str(self._attended.path),
            watch=watch,
        )


def _where(error: EntourageError) -> str:
    """What happened, to what, without the remedy."""
    where = " on ".join(part for part in (error.device, error.host) if part)
    return f"{where}: {error.message}" if where else error.message
