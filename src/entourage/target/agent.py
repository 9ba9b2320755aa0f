"""What ``entourage agent`` does: the target's half of one migration, for as long as its link lives.

It speaks on its standard input and output with the ``entourage migrate`` that started it over ssh.
It owns what it makes: when the link is lost before GO, it undoes all of it by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from entourage import messages
from entourage.admission import arrival_generation, unsettled
from entourage.clock import within
from entourage.devices.base import AnyController, There
from entourage.domain import Domain
from entourage.errors import (
    EntourageError,
    HypervisorError,
    LinkLost,
    PeerVersionError,
    Refused,
    UsageError,
    ours,
    plain_words,
)
from entourage.handover.rules import Target
from entourage.handover.values import (
    TERMINAL,
    Finding,
    Heard,
    Input,
    Message,
    MessageKind,
    Record,
    Role,
)
from entourage.hosts.frames import Notice
from entourage.hosts.link import Link
from entourage.hosts.resources import MemoryLedger
from entourage.hypervisors.base import Hypervisor, Incoming, Plan, Ticket
from entourage.hypervisors.registry import elsewhere, open_hypervisor, start_command, unseen
from entourage.journal.details import TargetDetails
from entourage.journal.journal import Decision, Journal, MigrationLedger
from entourage.journal.lock import domain_lock
from entourage.settings.model import Settings
from entourage.steps import Refusal
from entourage.target.caller import Caller, arrived_at, own_slot
from entourage.target.checks import Checks
from entourage.target.controllers import target_controllers
from entourage.target.making import CancellableTasks
from entourage.target.reattach import reattach_target
from entourage.target.role import TargetSide
from entourage.target.room import admitted, arrivals_slot, no_room
from entourage.target.shown import Shown, arriving
from entourage.target.way import WayProof
from entourage.testpoints import reached
from entourage.version import __version__

Body = TypeVar("Body")
_log = logging.getLogger(__name__)
_IDLES_FOR = 300.0
"""Seconds that a link may last on which nothing is asked, and no migration is."""


async def _nothing() -> None:
    """Somebody else serves the link."""


class Agent:
    """The target's half of a migration, for one link.

    Args:
        link: To the source.
        settings: This host's.
        journal: This host's.
        caller: What is known of the source before it says anything.
        hypervisor: The only one that may be asked for; None: any that the settings allow.
    """

    def __init__(
        self,
        link: Link,
        settings: Settings,
        journal: Journal,
        caller: Caller,
        hypervisor: Hypervisor | None = None,
    ) -> None:
        self._link = link
        self._only = hypervisor
        self._caller = caller
        self._checks = Checks(settings, proxy=caller.proxy, local=caller.local)
        self._settings = settings
        self._journal = journal
        self._host = socket.gethostname()
        self._hello: messages.Hello | None = None
        self._open: messages.Open | None = None
        self._hypervisor: Hypervisor | None = None
        self._there: There | None = None
        self._controllers: dict[str, AnyController] = {}
        self._side: TargetSide | None = None
        self._opening = self._built = self._given_up = False
        self._shown: Shown | None = None
        self._way = WayProof(self._checks.allowed)
        self._held = contextlib.AsyncExitStack()
        self._held.push_async_callback(self._close_way)
        self._in_order = asyncio.Lock()
        self._arrival_tasks = CancellableTasks()
        self._checking = CancellableTasks()
        self._watch: set[asyncio.Task[None]] = set()
        self._asked_to_end = asyncio.Event()
        link.on(messages.HELLO, self._on_hello)
        link.on(messages.TEST, self._on_test)
        link.on(messages.WAY, self._on_way)
        link.on(messages.DEVICE, self._on_device)
        link.on(messages.OPEN, self._on_open)
        link.on(messages.BUILD, self._on_build)
        link.on(messages.LISTEN, self._on_listen)
        link.on(messages.PROGRESS, self._on_progress)
        link.on(messages.SWITCHOVER_COOKIE, self._on_switchover_cookie)
        link.on(messages.PUBLISH, self._on_publish)
        link.on(messages.ABORT, self._on_abort)
        link.on(messages.BYE, self._on_bye)
        link.on(messages.HANDOVER, self._on_handover)

    async def run(self, *, served: bool = False) -> None:
        """Serve until the link ends; then undo what was made, unless GO was said.

        Args:
            served: Somebody else serves the link already.
        """
        serving = asyncio.create_task(_nothing() if served else self._link.serve())
        lost = asyncio.create_task(self._link.lost())
        asked = asyncio.create_task(self._asked_to_end.wait())
        idle = asyncio.create_task(self._idle())
        try:
            await asyncio.wait({lost, asked, idle}, return_when=asyncio.FIRST_COMPLETED)
            self._given_up = True
            if self._side:
                await self._side.take(Input.ABORT)
            await self._checking.end()
            await self._link.settle()
            if self._side:  # it may have been opened only then
                await self._side.take(Input.ABORT)
        finally:
            self._link.close()
            lost.cancel()  # its result is no news
            tasks = (serving, asked, idle, *self._watch)
            for task in tasks:
                task.cancel()
            ended: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
            for error in ended:
                if isinstance(error, Exception):
                    _log.error("%s", plain_words(error))  # ssh carries it to the source
            await self._held.aclose()

    async def _idle(self) -> None:
        """Returns when nothing was opened or reattached to, and nothing is asked any more.

        A source may take its time between two questions at TEST: to read a CD, say.
        """
        if self._caller.local:  # it ends with who has started it
            await asyncio.get_running_loop().create_future()
        patience = max(_IDLES_FOR, self._settings.migration.test_timeout)
        while (left := patience - self._link.unasked) > 0 or self._side:  # noqa: ASYNC110 - time passes
            await asyncio.sleep(left if left > 0 else patience)
        _log.error(  # ssh carries it to the source, which shows why the link has ended
            "nothing was asked for %g s, and no migration is open, so the agent ends: where the"
            " source needs longer to look at its disks, set migration.test-timeout on %s as well",
            patience,
            self._host,
        )

    def end(self) -> None:
        """Asked to end by a signal: the same as a lost link."""
        self._asked_to_end.set()

    # What the source asks, in the order of the story

    async def _on_hello(self, hello: messages.Hello) -> messages.Welcome:
        protocol = hello.agreed
        if protocol is None:
            ours = messages.spoken(messages.OLDEST, messages.NEWEST)
            raise PeerVersionError(
                f"Entourage {__version__} here speaks {ours},"
                f" {hello.version} on {hello.source} speaks {hello.speaks}",
                host=self._host,
                remedy="install the same version on both hosts",
            )
        if self._hello is not None and hello != self._hello:
            await self._forget_test(protocol)
        self._caller.check(hello.source, hello.hypervisor, self._settings.agent, self._host)
        if self._only is not None and hello.hypervisor != self._only.name:
            raise UsageError(f"this link is about a domain of {self._only.name!r}")
        self._hypervisor = self._only or open_hypervisor(self._settings, hello.hypervisor)
        self._hello = hello
        if there := elsewhere(hello.hypervisor):
            self._host = there.name
        return messages.Welcome(
            version=__version__,
            protocol=protocol,
            host=self._host,
            journal=self._journal.uuid,
            address=there.address if there else arrived_at(),
            clock=time.monotonic_ns(),
        )

    async def _forget_test(self, protocol: int) -> None:
        """Forget the domain that was tested: the source tests another one over the same link.

        Raises:
            UsageError: A migration is open; or the source's protocol knows of no such thing.
        """
        if self._opening or self._side is not None or protocol < messages.TESTS_SEVERAL:
            raise UsageError("one link is about one migration")
        proxy, local = self._caller.proxy, self._caller.local
        self._checks = Checks(self._settings, proxy=proxy, local=local)
        self._controllers, self._there = {}, None
        await self._close_way()
        self._way = WayProof(self._checks.allowed)
        if self._opening:  # meanwhile, of the one before
            raise UsageError("one link is about one migration")

    async def _close_way(self) -> None:
        await self._way.close()

    async def _on_test(self, test: messages.TestDomain) -> list[Refusal]:
        hypervisor = self._known()
        if self._opening:
            raise UsageError("the migration is open, and was tested before")
        self._checks.begin(test.domain, test.facts)
        refusals = await self._refusals(hypervisor, test.domain)
        # Which kind of machine it will be, the hypervisor may know only now.
        self._step_into(test.domain, hypervisor.incoming(test.domain, MemoryLedger()))
        if not self._caller.proxy:
            refusals += await no_room(self._settings, self._journal, test.domain, self._host)
        keeper = socket.gethostname()  # of the record: a proxy agent's host is the source
        return refusals + unsettled(self._settings, self._journal, test.domain, self._host, keeper)

    async def _refusals(self, hypervisor: Hypervisor, domain: Domain) -> list[Refusal]:
        """See ``Checks.refusals``; once the link has ended, nobody waits for them."""
        return await self._checking.run(self._checks.refusals(hypervisor, domain, self._host))

    async def _on_way(self, way: messages.Way) -> messages.WayAwaited:
        """Let the source prove that its data gets here."""
        there = self._there
        if there is None or self._opening:
            raise UsageError("the way is proven after the domain, before the migration is open")
        return await self._way.begin(there.incoming, way)

    async def _on_device(self, ask: messages.AskDevice) -> Any:
        controller = self._controllers.get(ask.device)
        if controller is None or self._there is None:
            raise UsageError(f"{ask.device} is no device of this domain")
        half: Callable[[There, Any], Coroutine[Any, Any, Any]] | None = {
            "test": controller.test_there,
            "prepare": controller.prepare_there,
            "connect": controller.connect_there,
            "transfer": controller.transfer_there,
            "sync": controller.sync_there,
            "recover": controller.recover_there,
        }.get(ask.half)
        if half is None:
            raise UsageError(f"{ask.half!r} is no step")
        if ask.half == "test":
            return await self._checking.run(half(self._there, ask.request))
        if ask.half == "recover":
            patience = self._settings.migration.recover_timeout
            remedy = "see what keeps it there, or raise migration.recover-timeout there"
            async with within(patience, f"the recovery of {ask.device} there", remedy):
                return await half(self._there, ask.request)
        there, _ = self._making()
        return await self._arrival_tasks.run(half(there, ask.request))

    async def _on_open(self, opening: messages.Open) -> messages.Opened:
        hypervisor = self._known()
        hello = self._hello
        uuid = opening.domain.uuid
        if self._opening or self._side is not None or hello is None or uuid is None:
            raise UsageError("one agent opens one migration, of a domain with a UUID")
        local = opening.plane.local
        if local is not None and not self._caller.local:
            raise UsageError("memory comes by a socket of this host for its own processes only")
        self._opening = True  # the next one may come while this one is looked at
        await self._way.close()  # its ports may be the only ones
        if not self._caller.proxy:
            self._checks.allowed.ports(*opening.plane.ports)
            # Not only at TEST, which a stranger leaves out: what has that name or UUID here must
            # never be taken for what this migration makes, and be ended with it.
            told = await self._refusals(hypervisor, opening.domain)
            if found := [each for each in told if not each.only_warns]:
                raise Refused(found)
        standing = self._journal.decision(hello.migration, Role.TARGET)
        if standing is not None and standing.record is not Record.NEVER:
            # It is another's: as one that was overtaken, this one would undo what that has made.
            raise UsageError("a migration of that id was opened before, by another agent")
        run_dir = Path(self._settings.paths.run)
        if not self._caller.proxy:  # one that this host itself has started is no stranger's
            self._held.enter_context(own_slot(self._caller, self._settings, self._host))
            self._held.enter_context(arrivals_slot(self._settings, self._host))
        name = opening.domain.name
        lock = self._held.enter_context(domain_lock(run_dir, uuid, arriving(hello, name)))
        self._shown = Shown(lock, hello, name)
        ledger = MigrationLedger(self._journal, hello.migration, Role.TARGET)
        self._step_into(opening.domain, hypervisor.incoming(opening.domain, ledger))
        decision = Decision(
            migration=hello.migration,
            role=Role.TARGET,
            domain=uuid,
            name=name,
            generation=arrival_generation(
                self._journal,
                uuid,
                opening.generation,
                # What its user has it go back to is older than what stands here.
                unseen=unseen(hypervisor.name) or (local is not None and local.revert),
            ),
            record=Record.OPEN,
            peer_host=hello.source,
            peer_journal=opening.source_journal,
            details=self._details(opening.domain, opening),
        )
        side = TargetSide(
            journal=self._journal,
            decision=decision,
            state=Target(migration=hello.migration),
            there=self._there,
            controllers=tuple(self._controllers.values()),
            send=self._send,
            on_failure=self._tell_failure,
            on_resumed=self._resumed,
            call_off=self._arrival_tasks.call_off,
        )
        room = admitted(self._settings, self._journal, opening.domain, self._host)
        async with contextlib.nullcontext() if self._caller.proxy else room:
            if self._given_up:  # by who asked for it, or with the link, while it was looked at
                raise UsageError("the migration was called off")
            await side.take(Input.BEGIN)
        self._open, self._side = opening, side
        there, _ = self._making()
        return messages.Opened(offers=dict(await there.incoming.offers()))

    async def _on_build(self, plan: Plan) -> None:
        there, opening = self._making()
        if self._built:
            raise UsageError("the machine is built, or is being built")
        self._built = True
        # A file or tap that a device's half chose is in there.domain by now; what comes later is
        # not looked at.
        domain = there.domain
        if not self._caller.proxy:
            await self._checks.parts(there, await there.incoming.host_parts(plan))
            there.incoming.check_with(partial(self._checks.parts, there))
        if there.domain is not domain:
            raise UsageError("a device has changed while the machine was looked at")
        await self._arrival_tasks.run(there.incoming.build(domain, opening.plane, plan))
        self._making()  # it may have been called off just now
        self._journal.detail(there.migration, Role.TARGET, self._details(there.domain, opening))
        self._watch.add(asyncio.create_task(self._watch_machine(there.incoming)))

    async def _on_listen(self, _: None) -> Ticket:
        there, _opening = self._making()
        ticket = await self._arrival_tasks.run(there.incoming.listen())
        self._making()
        self._watch.add(asyncio.create_task(self._watch_landing(there.incoming)))
        self._journal.warm()  # what GO's one flush must not pay for
        return ticket

    async def _on_progress(self, said: messages.Progress) -> None:
        """Let ``status`` here show what the source says of how far it is."""
        if self._shown and self._side and self._side.record is Record.OPEN:
            self._shown.progress(said.doing)

    async def _on_switchover_cookie(self, said: messages.SwitchoverCookie) -> None:
        there, _opening = self._making()
        async with self._in_order:  # GO comes right after it, and needs it
            try:
                if not self._caller.proxy:
                    await self._checks.parts(there, await there.incoming.parts_of_cookie(said.data))
            except EntourageError as error:
                self._tell_failure(error)  # not even GO has libvirt keep what that names
                return
            there.incoming.accept_cookie(said.data)

    async def _on_publish(self, _: None) -> None:
        """Have a checkpoint whole; its guest never runs here."""
        there, _opening = self._making()
        publishing = there.incoming.publishing
        if publishing is None:
            raise UsageError("what is not saved cannot be published")
        await self._arrival_tasks.run(publishing.publish())
        reached("target.published")

    async def _on_abort(self, _: None) -> list[str]:
        """Undo everything, if that is still to be decided here; what could not be undone."""
        self._given_up = True
        if self._side is None:
            return []
        await self._side.take(Input.ABORT)
        return [f"on {self._host}: {problem}" for problem in self._side.left]

    async def _on_bye(self, _: None) -> messages.Farewell:
        """Answer once everything that was asked before is done."""
        async with self._in_order:
            if self._side is None:
                return messages.Farewell(settled=False)
        await self._side.idle()
        problems = tuple(f"on {self._host}: {problem}" for problem in self._side.left)
        return messages.Farewell(settled=self._side.record in TERMINAL, problems=problems)

    async def _on_handover(self, said: messages.Say) -> None:
        message = Message(MessageKind(said.verb), said.migration)
        self._known()
        if self._hello is None or said.migration != self._hello.migration:
            raise UsageError("one link is about one migration")
        async with self._in_order:  # the next word may come before this one's side is there
            side = self._side or await self._reattach(message.migration)
        await side.take(Heard(message))

    async def _reattach(self, migration: str) -> TargetSide:
        """A new link about a migration that another agent served: it may be dead, or a zombie."""
        if decision := self._journal.decision(migration, Role.TARGET):
            self._caller.check_peer(decision.peer_host, self._host)
        self._side = await self._held.enter_async_context(
            reattach_target(
                self._journal,
                self._settings,
                migration,
                send=self._send,
                on_failure=self._tell_failure,
            )
        )
        return self._side

    # What happens by itself

    async def _watch_landing(self, incoming: Incoming) -> None:
        try:
            await incoming.landed()
        except Exception as error:  # noqa: BLE001 - who waits for memory would wait for ever
            self._tell_failure(ours(error))
            return
        if self._side:
            await self._side.take(Input.MEMORY_LANDED)

    async def _watch_machine(self, incoming: Incoming) -> None:
        reason = await incoming.died()
        if self._side is None:
            return
        if self._side.record is Record.OPEN:
            self._tell_failure(HypervisorError(f"the machine being built is gone: {reason}"))
        await self._side.take(Input.GUEST_DIED)
        ours = self._side.record in {Record.RAN, Record.OWNS}
        if ours and Finding.CRASHED_HERE not in self._side.findings:
            start = start_command(self._known().name, self._side.domain)
            remedy = f"it is off and whole: `{start}` there"
            self._tell_failure(HypervisorError(f"its machine has ended: {reason}", remedy=remedy))

    # Small things

    def _send(self, message: Message) -> None:
        self._tell(messages.HANDOVER, messages.Say(message.kind.value, message.migration))

    def _resumed(self, moments: messages.Resumed) -> None:
        self._tell(messages.RESUMED, moments)
        if self._shown:
            self._shown.runs()

    def _tell_failure(self, error: EntourageError) -> None:
        self._tell(
            messages.FAILED,
            messages.Failure(message=error.message, device=error.device, remedy=error.remedy),
        )

    def _tell(self, kind: Notice[Body], body: Body) -> None:
        with contextlib.suppress(LinkLost):
            self._link.tell(kind, body)

    def _details(self, domain: Domain, opening: messages.Open) -> TargetDetails:
        """What recovery needs on this host."""
        return TargetDetails(domain=domain, paused=opening.paused, hypervisor=self._known().name)

    def _known(self) -> Hypervisor:
        if self._hypervisor is None:
            raise PeerVersionError("the first word must be hello", host=self._host)
        return self._hypervisor

    def _making(self) -> tuple[There, messages.Open]:
        if self._there is None or self._open is None:
            raise UsageError("the migration is not open")
        if self._side is None or self._side.record is not Record.OPEN:
            raise UsageError("the migration was called off")
        return self._there, self._open

    def _step_into(self, domain: Domain, incoming: Incoming) -> None:
        """Set the domain to work with, and make new controllers for it."""
        migration = self._hello.migration if self._hello else ""
        source = self._hello.source if self._hello else ""
        controllers = target_controllers(domain, incoming)
        self._controllers = {each.device.label: each for each in controllers}
        self._there = There(
            migration=migration,
            host=self._host,
            domain=domain,
            incoming=incoming,
            ledger=MigrationLedger(self._journal, migration, Role.TARGET),
            settings=self._settings,
            run_dir=self._settings.paths.run,
            state_dir=self._settings.paths.state,
            allowed=self._checks.allowed,
            source=source,
        )
