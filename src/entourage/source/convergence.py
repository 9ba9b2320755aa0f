"""The convergence policy of pre-copy: stages, each with the downtime accepted from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NoReturn

from entourage.errors import DeadlineError
from entourage.events import CopyProgress, Listener, PolicyChanged
from entourage.hypervisors.base import Machine
from entourage.settings.model import ConvergenceStage

_LOOK_EVERY = 0.5  # seconds, while the guest runs; the stop itself comes as an event


def throttles(stages: Sequence[ConvergenceStage]) -> bool:
    """Whether any stage slows the guest down: the hypervisor must know beforehand."""
    return any(stage.throttle for stage in stages)


def at_first(stages: Sequence[ConvergenceStage]) -> float | None:
    """Seconds of blackout that are accepted from the beginning; None where nothing is said."""
    return next((stage.downtime_limit for stage in stages if not stage.after), None)


async def press(
    machine: Machine,
    stages: Sequence[ConvergenceStage],
    emit: Listener,
    seen: Callable[[CopyProgress], None],
    now: Callable[[], float],
) -> NoReturn:
    """Go through the stages while pre-copy runs; cancelled when the guest has stopped.

    Args:
        machine: It is being copied.
        stages: The policy.
        emit: Takes the event of each stage.
        seen: Takes how far memory is.
        now: The events' ``at``.

    Raises:
        DeadlineError: A stage says that it is time to give up.
    """
    began = now()
    stage = -1
    while True:
        while stage + 1 < len(stages) and now() - began >= stages[stage + 1].after:
            stage += 1
            accepted = stages[stage]
            if accepted.give_up:
                raise DeadlineError(
                    f"memory did not converge within {accepted.after:g} s",
                    remedy="change migration.convergence, quieten the guest, or use --non-live",
                )
            await machine.tune(downtime_limit=accepted.downtime_limit, throttle=accepted.throttle)
            emit(
                PolicyChanged(
                    at=now(),
                    stage=stage,
                    downtime_limit=accepted.downtime_limit,
                    throttle=accepted.throttle,
                )
            )
        memory = await machine.progress()
        seen(
            CopyProgress(
                at=now(),
                what="memory",
                done=max(0, memory.total - memory.remaining),
                total=memory.total,
                rate=memory.rate,
                dirty_rate=memory.dirty_rate,
                iteration=memory.iteration,
                sent=memory.sent,
            )
        )
        await asyncio.sleep(_LOOK_EVERY)
