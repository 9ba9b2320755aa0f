"""Campaigns that outlive whoever runs them, by DBOS.

What DBOS does: it keeps, in the database of the campaigns, which of them somebody is to run; it has
one that was killed be run again when its controller comes back, or by another one that takes it
over; and of two that run one at once it lets the result of one stand. What it does not do: how far
a campaign has come is in ``entourage.fleet.store``, and what became of a domain only its hosts
know, which are asked first. So a campaign is one workflow of one step, which can be run again from
its beginning at any moment.

Everything that DBOS keeps is portable JSON: its default, pickle, would let whoever can write the
database run programs here. The application's version is fixed, so that an Entourage that was
upgraded finds what was begun before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator
from pathlib import Path
from typing import Final, TypeVar

from dbos import (
    DBOS,
    DBOSConfig,
    DBOSPortableJSONSerializer,
    SetWorkflowID,
    WorkflowSerializationFormat,
    WorkflowStatus,
)
from dbos import (
    error as dbos_errors,
)

from entourage.errors import EntourageError, UsageError, plain_words, what_to_do
from entourage.fleet.campaign import Phase, Wish
from entourage.fleet.controller import Runner
from entourage.fleet.database import DatabaseAwayError, open_engine, told
from entourage.fleet.outage import Outage
from entourage.fleet.spec import Summary
from entourage.fleet.store import SILENT_AFTER
from entourage.fleet.values import MoveState
from entourage.hosts.slots import slot
from entourage.hosts.threads import in_thread
from entourage.settings.model import Settings

FORMAT: Final = "campaign-format-1"
"""The version of what a workflow does; another one only where the store's form changes."""
QUEUE: Final = "campaigns"
_BEAT_EVERY: Final = 3.0
_LOOK_EVERY: Final = 0.5
_NOTICES_EVERY: Final = 1.0  # seconds; DBOS waits for as long as it ends
_MOST: Final = 64  # controllers on one host
_ANSWERS_WITHIN: Final = 30.0  # seconds
_LIVES: Final = frozenset({"PENDING", "ENQUEUED", "DELAYED"})
Answer = TypeVar("Answer")
_running: Runner | None = None


@DBOS.step(preemptible=True)
async def _drive(name: str) -> str:
    assert _running is not None, "DBOS is launched with a runner"  # noqa: S101 - see Durable.open
    return await _running.drive(name)


@DBOS.workflow(name="campaign", serialization_type=WorkflowSerializationFormat.PORTABLE)
async def _campaign(name: str) -> str:
    return await _drive(name)


@contextlib.contextmanager
def controller_name(settings: Settings) -> Generator[str]:
    """A name for this controller that no other living one has, and a dead one may have had.

    So what was begun by one that was killed goes on when the next is started on this host.

    Raises:
        UsageError: There are too many, or the lock cannot be made.
    """
    with contextlib.ExitStack() as held:
        for number in range(_MOST):
            slots = slot(Path(settings.paths.run, "controllers"), str(number), 1)
            try:
                if held.enter_context(slots):
                    yield f"{socket.gethostname()}-{number}"
                    return
            except OSError as error:
                raise UsageError(
                    f"the lock of a controller cannot be made: {plain_words(error)}",
                    remedy=what_to_do(error),
                ) from error
        raise UsageError(
            f"{_MOST} controllers run on this host", remedy="`entourage campaign list` says which"
        )


class Away:
    """Whether the database was away just now: then others could not say that they live either."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._until = 0.0

    def answered(self) -> bool:
        """It has answered; whether it has for so long that a controller which is silent is dead."""
        now = time.monotonic()
        if self._last is not None and now - self._last > 2 * _BEAT_EVERY:
            self._until = now + SILENT_AFTER
        self._last = now
        return now >= self._until


class Durable:
    """Runs campaigns of the store; see ``engine.Engine``. Use ``Durable.open``.

    Args:
        runner: What runs one.
        owner: What this controller is called.
    """

    def __init__(self, runner: Runner, owner: str) -> None:
        self._runner = runner
        self._owner = owner
        self._away = Away()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, runner: Runner, owner: str) -> AsyncGenerator[Durable]:
        """Launch DBOS; what this controller's name had begun, and was killed, goes on at once.

        Args:
            runner: What runs a campaign.
            owner: What this controller is called.

        Raises:
            EntourageError: The database cannot be reached.
        """
        global _running  # noqa: PLW0603 - DBOS finds workflows by their names, in modules
        _running = runner
        url = runner.store.engine.url.render_as_string(hide_password=False)
        for name in [name for name in os.environ if name.startswith("DBOS__")]:
            del os.environ[name]  # they would connect this process to a service of DBOS's
        database = open_engine(url, begins=False)
        config: DBOSConfig = {
            "name": "entourage",
            "system_database_engine": database,
            "system_database_url": url,
            "application_version": FORMAT,
            "executor_id": owner,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "CRITICAL",  # errors are told by us, without the traceback
            "use_listen_notify": False,
            "notification_listener_polling_interval_sec": _NOTICES_EVERY,
        }
        made = DBOS(config=config)
        durable, left = cls(runner, owner), False
        await in_thread(runner.store.beat, owner)
        try:
            await _asked(in_thread(DBOS.launch))
            queue = in_thread(
                DBOS.register_queue, QUEUE, polling_interval_sec=1.0, on_conflict="never_update"
            )
            await _asked(queue)
            beating = asyncio.create_task(durable._beat())
            try:
                yield durable
            finally:
                beating.cancel()
                _try_no_more(made)
                left = True
                with contextlib.suppress(EntourageError):  # the database may be gone
                    left = bool(await durable.pending())
        finally:
            _try_no_more(made)
            with contextlib.suppress(EntourageError):
                await _asked(in_thread(DBOS.destroy))
            database.dispose()  # one that is given to DBOS is not its own
            if not left:  # else another one takes over what this one leaves
                with contextlib.suppress(EntourageError):
                    await _asked(in_thread(runner.store.gone, owner))
            _running = None

    async def pending(self) -> set[str]:
        """The campaigns that this controller runs; also those that it has yet to go on with.

        Raises:
            EntourageError: The database cannot be reached.
        """
        found = await _pending(self._owner)
        return {one.workflow_id.rpartition("/")[0] for one in found}

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(EntourageError):  # the next one may be heard
                await in_thread(self._runner.store.beat, self._owner)
            await asyncio.sleep(_BEAT_EVERY)

    async def run(self, name: str) -> Phase:
        """See ``engine.Engine``; one that another controller runs is waited for.

        Raises:
            EntourageError: It cannot go on: a source does not answer, or, where another controller
                runs it, the database for long.
        """
        workflow, store = await self.begin(name), self._runner.store

        def note(message: str) -> None:
            if not self._runner.drives(name):  # else that says it
                self._runner.note(name, message)

        async def look() -> tuple[WorkflowStatus | None, Summary]:
            await in_thread(store.has, name)  # it says at once why there is no answer
            status = await _status(workflow)
            living = await in_thread(self._living)
            summary = await in_thread(store.summary, name)  # last: as it has ended
            if status is not None and status.status in _LIVES:
                dead = self._away.answered() and status.executor_id not in living
                if status.status == "PENDING" and dead:
                    await _resume(workflow)
            return status, summary

        outage = Outage(note, lambda: self._runner.drives(name))
        while True:
            status, summary = await outage.through(look)
            if status is None or status.status not in _LIVES:
                break
            await asyncio.sleep(_LOOK_EVERY)
        if summary.is_over or status is None or status.status == "SUCCESS":
            return summary.phase
        raise EntourageError(
            f"the campaign {name} cannot go on: {status.error or status.status}",
            remedy=f"mend that, then `entourage campaign resume {name}`",
        )

    async def begin(self, name: str) -> str:
        """Have it run here, unless somebody runs it; the name of its workflow; EntourageError."""
        attempt = 0
        while (status := await _status(_id(name, attempt))) is not None:
            if status.status in _LIVES:
                return _id(name, attempt)
            attempt += 1
        with SetWorkflowID(_id(name, attempt)):
            await _asked(DBOS.start_workflow_async(_campaign, name))
        return _id(name, attempt)

    def _living(self) -> set[str]:
        """The controllers that live."""
        return {self._owner, *self._runner.store.living(SILENT_AFTER)}

    async def take_over(self) -> list[str]:
        """Have what dead controllers ran be run by those that live.

        Returns:
            The names of the dead.

        Raises:
            EntourageError: The database cannot be reached.
        """
        silent = await in_thread(self._runner.store.silent, SILENT_AFTER)
        if not self._away.answered():
            return []
        dead = [one for one in silent if one != self._owner]
        for owner in dead:
            for one in await _pending(owner):
                await _resume(one.workflow_id)
            await in_thread(self._runner.store.gone, owner)
        return dead

    async def signal(self, name: str, wish: Wish) -> None:
        """See ``engine.Engine``."""
        await in_thread(self._runner.store.wish, name, wish)

    async def watch(self, name: str) -> AsyncIterator[MoveState]:
        """See ``engine.Engine``; by looking, for another process may run it."""
        store, seen = self._runner.store, dict[str, MoveState]()
        while True:
            over = (await in_thread(store.summary, name)).is_over
            for state in await in_thread(store.states, name):
                if seen.get(state.move.uuid) != state:
                    seen[state.move.uuid] = state
                    yield state
            if over:
                return
            await asyncio.sleep(_LOOK_EVERY)


async def _pending(owner: str) -> list[WorkflowStatus]:
    return await _asked(
        in_thread(DBOS.list_workflows, status="PENDING", executor_id=owner, load_input=False)
    )


async def _status(workflow: str) -> WorkflowStatus | None:
    return await _asked(in_thread(DBOS.get_workflow_status, workflow))


async def _resume(workflow: str) -> None:
    await _asked(in_thread(DBOS.resume_workflow, workflow, queue_name=QUEUE))


async def _asked(answer: Awaitable[Answer]) -> Answer:
    """What DBOS answers: it tries for ever to reach a database that is away.

    Raises:
        EntourageError: It does not answer in time, or cannot.
    """
    with told():
        try:
            async with asyncio.timeout(_ANSWERS_WITHIN):
                return await answer
        except TimeoutError as late:
            why, cause = f"no answer within {_ANSWERS_WITHIN:g} s", late
        except dbos_errors.DBOSException as error:
            why, cause = " ".join(str(error).split()), error
    kind = DatabaseAwayError if isinstance(cause, TimeoutError) else EntourageError
    raise kind(
        f"the fleet's database: {why}", remedy="see whether it can be reached and written"
    ) from cause


def _try_no_more(made: DBOS) -> None:
    """Have what waits for a database that is away end at its next try: a process waits for it."""
    database: object = getattr(made, "_sys_db_field", None)
    if database is not None:
        setattr(database, "_retry_connection_errors", False)  # noqa: B010 - there is no option


def _id(name: str, attempt: int) -> str:
    """A workflow's: one that ended is never run again; tried anew, a campaign is another one."""
    return f"{name}/{attempt}"
