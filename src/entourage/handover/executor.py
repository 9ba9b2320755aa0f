"""Executes, in order, the effects that the hand-over's pure functions decide."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Generic, TypeVar

from entourage.handover.rules import Source, Target
from entourage.handover.values import (
    AnyInput,
    Do,
    Effect,
    Flush,
    Overtaken,
    Report,
    Send,
    Transition,
)
from entourage.testpoints import reached

StateT = TypeVar("StateT", Source, Target)
Decide = Callable[[StateT, AnyInput], Transition[StateT]]


def _name(effect: Effect) -> str:
    """An effect's name in test points: ``flush-go``, ``send-ran``, ``let-run``."""
    match effect:
        case Flush():
            return f"flush-{effect.new}"
        case Send():
            return f"send-{effect.message.kind}"
        case Report():
            return f"report-{effect.finding}"
        case Do():
            return effect.value


class Executor(Generic[StateT]):
    """Passes inputs to a role's decision function, one at a time, and executes the effects.

    Args:
        state: The role's state to begin with.
        decide: ``decide_source`` or ``decide_target``.
        do: Executes one effect; may return an input that it led to, which comes before any other.
            For a Flush that changed nothing it returns ``Overtaken``: the rest is dropped.
    """

    def __init__(
        self,
        state: StateT,
        decide: Decide[StateT],
        do: Callable[[Effect], Awaitable[AnyInput | None]],
    ) -> None:
        self.state = state
        self._decide = decide
        self._do = do
        self._role = type(state).__name__.lower()
        self._turn = asyncio.Lock()

    async def take(self, given: AnyInput) -> None:
        """Decide about an input and execute what follows; returns when all of it is done.

        Raises:
            JournalError: A flush failed. What is on the disk is not known: the process must end.
        """
        async with self._turn:
            await self._follow(given)

    async def idle(self) -> None:
        """Returns once nothing that was brought before is under way."""
        async with self._turn:
            pass

    async def _follow(self, given: AnyInput) -> None:
        before = self.state
        transition = self._decide(before, given)
        self.state = transition.state
        for number, effect in enumerate(transition.effects):
            point = _name(effect)
            reached(f"{self._role}.before.{point}")
            try:
                led_to = await self._do(effect)
                reached(f"{self._role}.after.{point}")
            except Exception:
                if number == 0:  # nothing of the transition has happened
                    self.state = before
                elif isinstance(effect, Flush):  # and this is not decided
                    self.state = replace(self.state, record=before.record)
                raise
            if led_to is None:
                continue
            await self._follow(led_to)
            if isinstance(effect, Flush) and isinstance(led_to, Overtaken):
                return
