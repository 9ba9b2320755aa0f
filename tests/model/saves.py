"""One save and two restores of it, explored: the rules of the hand-over, and a claim between them.

``python -m tests.model.saves``. A save and each restore is a migration with both halves, whose
rules are explored by themselves in ``explore``. What is new is here: the directory, which is there
from the save's release on; the claim, which is taken where the deadman would be disarmed, and given
up or confirmed where the source's copy would be resumed or destroyed; and that the machine that was
saved, and both that are restored, are one.

Each half may be killed between any two effects. What it said before may arrive or be lost.
"""

from __future__ import annotations

import functools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from entourage.handover.rules import Source, Target, decide_source, decide_target
from entourage.handover.values import (
    TERMINAL,
    AnyInput,
    Connected,
    Do,
    Effect,
    Flush,
    Guest,
    Heard,
    Input,
    Message,
    MessageKind,
    Overtaken,
    Record,
    Report,
    Send,
)

SAVE, ONE, OTHER = range(3)
_NAMES = ("the save", "one restore", "the other restore")
_ID, _JOURNAL = "m", "T"
_FAULTS = 1
_NONE = -1


class Half(NamedTuple):
    """A process: what it knows, and what it still has to do."""

    state: Source | Target
    effects: tuple[Effect, ...] = ()


class Pair(NamedTuple):
    """Both halves of a migration.

    Attributes:
        source, target: The processes; None where none runs.
        left, right: The records on both disks, and whether ``CLEAN`` was done.
        guest: Of the target's: ``STOPPED`` is built, ``RUNNING`` is let run.
        said: What is on the link.
        begun: Whether it was ever begun.
    """

    source: Half | None = None
    target: Half | None = None
    left: tuple[Record | None, bool] = (None, False)
    right: tuple[Record | None, bool] = (None, False)
    guest: Guest = Guest.DEAD
    said: frozenset[MessageKind] = frozenset()
    begun: bool = False


class World(NamedTuple):
    """Everything.

    Attributes:
        pairs: The save, and both restores.
        original: The machine that is saved.
        published: Whether the directory has its name.
        claim: Whose it is; ``_NONE`` for nobody's.
        confirmed: Whether whoever has it has let the guest run, and said so in it.
        faults: How many may still happen.
    """

    pairs: tuple[Pair, Pair, Pair] = (Pair(), Pair(), Pair())
    original: Guest = Guest.RUNNING
    published: bool = False
    claim: int = _NONE
    confirmed: bool = False
    faults: int = _FAULTS


class Violation(Exception):  # noqa: N818 - what it is called in the trade
    """Something happened that must never happen."""


class Claims(NamedTuple):
    """What is done with the claim. Planted bugs change one of these."""

    take: Callable[[World, int], World | None]
    """None: it is another's."""
    give_up: Callable[[World, int], World]
    confirm: Callable[[World, int], World]
    looks_first: bool = True
    """A restore is refused at TEST where the save is claimed."""
    source: Callable[[Source, AnyInput], object] = decide_source


def _take(world: World, who: int) -> World | None:
    if world.claim not in {_NONE, who}:
        return None
    return world._replace(claim=who)


def _give_up(world: World, who: int) -> World:
    ours = world.claim == who and not world.confirmed
    return world._replace(claim=_NONE) if ours else world


def _confirm(world: World, who: int) -> World:
    if world.claim != who:
        raise Violation(f"{_NAMES[who]} confirms a claim that is not its own")
    return world._replace(confirmed=True)


AS_IT_IS = Claims(_take, _give_up, _confirm)


def _take_anyway(world: World, who: int) -> World | None:
    return world._replace(claim=who)


def _never_take(world: World, who: int) -> World | None:
    return world


def _give_up_anyones(world: World, who: int) -> World:
    return world._replace(claim=_NONE, confirmed=False)


def _never_give_up(world: World, who: int) -> World:
    return world


def _confirm_by_giving_up(world: World, who: int) -> World:
    return world._replace(claim=_NONE) if world.claim == who else world


def _goes_before_it_claims(state: Source, given: AnyInput) -> object:
    step = decide_source(state, given)
    if given is Input.READY and step.effects:
        return step._replace(effects=step.effects[::-1])
    return step


def _comes_back_unasked(state: Source, given: AnyInput) -> object:
    if given is Input.RESTARTED and state.record is Record.ARMED:
        return decide_source(replace(state, live=True), Input.ABORT)
    return decide_source(state, given)


PLANTED = {
    "a claim is taken from whoever has it": AS_IT_IS._replace(take=_take_anyway),
    "nothing is claimed": AS_IT_IS._replace(take=_never_take, confirm=_never_give_up),
    "another's claim is given up": AS_IT_IS._replace(give_up=_give_up_anyones),
    "a claim is never given up": AS_IT_IS._replace(give_up=_never_give_up),
    "what was restored can be again": AS_IT_IS._replace(confirm=_confirm_by_giving_up),
    "GO is said before the claim": AS_IT_IS._replace(source=_goes_before_it_claims),
    "a restarted restore gives its claim up unasked": AS_IT_IS._replace(source=_comes_back_unasked),
}


def _with(world: World, who: int, **changes: object) -> World:
    """The world with a pair changed. What a process only says, or tidies up, it does at once."""
    pair = world.pairs[who]._replace(**changes)  # type: ignore[arg-type] - fields of Pair
    for side in ("source", "target"):
        half: Half | None = getattr(pair, side)
        while half is not None and half.effects:
            match half.effects[0]:
                case Send(message):
                    pair = pair._replace(said=pair.said | {message.kind})
                case Do.UNDO_RESOURCES:
                    pass
                case _:
                    break
            half = Half(half.state, half.effects[1:])
            pair = pair._replace(**{side: half})
    pairs = list(world.pairs)
    pairs[who] = pair
    return world._replace(pairs=tuple(pairs))  # type: ignore[arg-type] - three of them


@functools.cache
def _asked(half: Half, given: AnyInput, source: Callable[[Source, AnyInput], object]) -> Half:
    state = half.state
    step = source(state, given) if isinstance(state, Source) else decide_target(state, given)
    return Half(step.state, tuple(one for one in step.effects if not isinstance(one, Report)))  # type: ignore[attr-defined] - a Transition


def _moves(world: World, claims: Claims) -> Iterator[tuple[str, World]]:
    for who, pair in enumerate(world.pairs):
        name = _NAMES[who]
        if not pair.begun:
            if who == SAVE or (world.published and (not claims.looks_first or world.claim < 0)):
                yield f"{name} begins", _begun(world, who, claims)
            continue
        for side in ("source", "target"):
            half: Half | None = getattr(pair, side)
            if half is None:
                continue
            if half.effects:
                yield from _execute(world, who, side, half, claims)
            if world.faults:
                dead = _with(world, who, **{side: None})
                yield f"{name}: its {side} is killed", dead._replace(faults=world.faults - 1)
        yield from _heard(world, who, claims)
        yield from _by_itself(world, who, claims)
        yield from _recover(world, who, claims)


def _begun(world: World, who: int, claims: Claims) -> World:
    source = _asked(Half(Source(migration=_ID, peer_journal=_JOURNAL)), Input.BEGIN, claims.source)
    target = _asked(Half(Target(migration=_ID)), Input.BEGIN, claims.source)
    return _with(world, who, source=source, target=target, begun=True)


def _execute(
    world: World, who: int, side: str, half: Half, claims: Claims
) -> Iterator[tuple[str, World]]:
    pair, effect = world.pairs[who], half.effects[0]
    rest = Half(half.state, half.effects[1:])
    story = f"{_NAMES[who]}: its {side} does {effect}"
    disk = "left" if side == "source" else "right"
    match effect:
        case Flush(expected, new):
            found = getattr(pair, disk)[0]
            if found is not expected:
                after = _asked(half._replace(effects=()), Overtaken(found), claims.source)
                yield f"{story}, and is too late", _with(world, who, **{side: after})
                return
            born_clean = expected is None and new is Record.NEVER
            yield story, _with(world, who, **{side: rest, disk: (new, born_clean)})
        case Do.CLEAN:
            record = getattr(pair, disk)[0]
            yield story, _with(world, who, **{side: rest, disk: (record, True)})
        case Do.DISARM_DEADMAN if who != SAVE:
            taken = claims.take(world, who)
            if taken is not None:
                yield story, _with(taken, who, **{side: rest})
                return
            # The executor is where it was before READY, and its caller goes back.
            assert isinstance(half.state, Source)
            before = Half(replace(half.state, live=True))
            after = _asked(before, Input.ABORT, claims.source)
            yield f"{story}, and somebody else has it", _with(world, who, **{side: after})
        case Do.DISARM_DEADMAN:
            # A guest that its deadman would resume stands still from here on.
            yield story, _with(world._replace(original=Guest.STOPPED), who, **{side: rest})
        case Do.RESUME_SOURCE if who != SAVE:
            yield story, _with(claims.give_up(world, who), who, **{side: rest})
        case Do.RESUME_SOURCE:
            yield story, _with(world._replace(original=Guest.RUNNING), who, **{side: rest})
        case Do.DESTROY_SOURCE if who != SAVE:
            yield story, _with(claims.confirm(world, who), who, **{side: rest})
        case Do.DESTROY_SOURCE:
            yield story, _with(world._replace(original=Guest.DEAD), who, **{side: rest})
        case Do.LET_RUN:
            after = _asked(Half(half.state), Input.RELEASED, claims.source)
            let = world._replace(published=True) if who == SAVE else world
            yield story, _with(let, who, target=after, guest=Guest.RUNNING)
        case Do.SYNC_DEVICES if half.state.record is Record.OPEN:
            after = _asked(Half(half.state), Input.DEVICES_SYNCED, claims.source)
            yield story, _with(world, who, target=after)
        case Do.KILL_TARGET:
            if pair.guest is Guest.RUNNING:
                raise Violation(f"{_NAMES[who]}: what was let run is undone")
            yield story, _with(world, who, target=rest, guest=Guest.DEAD)
        case Do.STOP_AND_ALARM:
            raise Violation("the alarm rang")
        case _:
            yield story, _with(world, who, **{side: rest})


_TO_TARGET = frozenset({MessageKind.GO, MessageKind.ASK, MessageKind.GONE, MessageKind.BACK})


def _heard(world: World, who: int, claims: Claims) -> Iterator[tuple[str, World]]:
    """A message arrives; it may do so again, later."""
    pair = world.pairs[who]
    for kind in pair.said:
        side = "target" if kind in _TO_TARGET else "source"
        half: Half | None = getattr(pair, side)
        if half is None or half.effects:
            continue
        if kind is MessageKind.LANDED and isinstance(half.state, Source):
            if half.state.live:
                after = _asked(half, Input.READY, claims.source)
                yield f"{_NAMES[who]}: LANDED is heard", _with(world, who, source=after)
            continue
        after = _asked(half, Heard(Message(kind, _ID)), claims.source)
        if after != half:
            yield f"{_NAMES[who]}: {kind} is heard", _with(world, who, **{side: after})


def _by_itself(world: World, who: int, claims: Claims) -> Iterator[tuple[str, World]]:
    """Memory lands; one half finds that the other is gone."""
    pair = world.pairs[who]
    target, source = pair.target, pair.source
    if target and not target.effects and target.state.record is Record.OPEN:
        if source is not None and source.state.record is Record.ARMED and not source.effects:
            if pair.guest is Guest.DEAD:
                yield f"{_NAMES[who]}: it is built", _with(world, who, guest=Guest.STOPPED)
            elif MessageKind.LANDED not in pair.said:
                after = _asked(target, Input.MEMORY_LANDED, claims.source)
                yield f"{_NAMES[who]}: memory lands", _with(world, who, target=after)
        if source is None or source.state.record is Record.BACK:
            after = _asked(target, Input.ABORT, claims.source)
            yield f"{_NAMES[who]}: its target gives up", _with(world, who, target=after)
    if source and not source.effects and source.state.live and target is None:  # type: ignore[union-attr] - a Source
        after = _asked(source, Input.ABORT, claims.source)
        yield f"{_NAMES[who]}: its source gives up", _with(world, who, source=after)


def _recover(world: World, who: int, claims: Claims) -> Iterator[tuple[str, World]]:
    """New processes, which know what is on the disks; the source's asks the target's."""
    pair = world.pairs[who]
    if pair.target is None and (pair.right[0] is not None or pair.left[0] is not None):
        record, clean = pair.right
        state = Target(migration=_ID, record=record, guest=pair.guest, clean=clean)
        if not (record in TERMINAL and clean):
            after = _asked(Half(state), Input.RESTARTED, claims.source)
            if after != Half(state) or MessageKind.ASK in pair.said:
                yield f"{_NAMES[who]}: its target is asked", _with(world, who, target=after)
        elif MessageKind.ASK in pair.said:
            yield f"{_NAMES[who]}: its target is asked", _with(world, who, target=Half(state))
    record, clean = pair.left
    half = pair.source
    if half is None and record is not None and not (record in TERMINAL and clean):
        guest = world.original if who == SAVE else Guest.STOPPED
        state = Source(
            migration=_ID, peer_journal=_JOURNAL, record=record, guest=guest, clean=clean
        )
        after = _asked(Half(state), Input.RESTARTED, claims.source)
        yield f"{_NAMES[who]}: its source recovers", _with(world, who, source=after)
    elif half is not None and not half.effects and half.state.record is Record.ARMED:
        assert isinstance(half.state, Source)
        if half.state.in_doubt and MessageKind.ASK not in pair.said:
            after = _asked(half, Connected(_JOURNAL), claims.source)
            yield f"{_NAMES[who]}: its source asks", _with(world, who, source=after)


def check(world: World) -> None:
    """Raise Violation where more than one copy runs, or may."""
    save, one, other = world.pairs
    runs = [who for who in (ONE, OTHER) if world.pairs[who].guest is Guest.RUNNING]
    if len(runs) > 1:
        raise Violation("both restores let the guest run")
    if runs and world.original is Guest.RUNNING:
        raise Violation("the guest was restored, and the original runs")
    if runs and world.claim != runs[0]:
        raise Violation("the guest was let run without a claim")
    if world.published and save.right[0] is Record.NEVER:
        raise Violation("a save stands that was given up")
    if world.original is Guest.DEAD and not world.published:
        raise Violation("the original was ended, and there is no save")
    del one, other


def settled(world: World) -> bool:
    """Whether nothing is under way, and exactly one thing is left: a guest that runs, or a save."""
    if any(
        half is not None and half.effects
        for pair in world.pairs
        for half in (pair.source, pair.target)
    ):
        return False
    for pair in world.pairs:
        for record, clean in (pair.left, pair.right):
            if record is not None and not (record in TERMINAL and clean):
                return False
    running = [who for who in (ONE, OTHER) if world.pairs[who].guest is Guest.RUNNING]
    if world.original is Guest.RUNNING:
        return not world.published
    if running:
        return world.confirmed
    return world.published and world.claim == _NONE


_DONE = Pair(left=(Record.GONE, True), right=(Record.OWNS, True), guest=Guest.RUNNING, begun=True)
_SPACES = (
    # A save, and a restore while its source may still be in doubt.
    World(pairs=(Pair(), Pair(), Pair(begun=True))),
    # Two restores of what was saved.
    World(pairs=(_DONE, Pair(), Pair()), original=Guest.DEAD, published=True),
)


def explore(claims: Claims = AS_IT_IS) -> tuple[int, str, list[str]]:
    """Explore both spaces; see ``_explored``."""
    count = 0
    for first in _SPACES:
        more, problem, story = _explored(first, claims)
        count += more
        if problem:
            return count, problem, story
    return count, "", []


def _explored(first: World, claims: Claims) -> tuple[int, str, list[str]]:
    """Every world that can be reached.

    Args:
        first: From where.
        claims: What is done with the claim.

    Returns:
        How many there are, what is wrong (empty: nothing), and how it came to that.
    """
    parents: dict[World, tuple[World, str] | None] = {first: None}
    backwards: dict[World, list[World]] = {}
    todo = deque([first])
    while todo:
        world = todo.popleft()
        try:
            check(world)
            for story, after in _moves(world, claims):
                if after.faults == world.faults:
                    backwards.setdefault(after, []).append(world)
                if after not in parents:
                    parents[after] = (world, story)
                    todo.append(after)
        except Violation as violation:
            return len(parents), str(violation), _story(parents, world)
    good = deque(world for world in parents if settled(world))
    alive = set(good)
    while good:
        for before in backwards.get(good.popleft(), ()):
            if before not in alive:
                alive.add(before)
                good.append(before)
    for world in parents:
        if world not in alive:
            return len(parents), "no recovery leads out of here", _story(parents, world)
    return len(parents), "", []


def _story(parents: dict[World, tuple[World, str] | None], world: World) -> list[str]:
    told: list[str] = []
    while (step := parents[world]) is not None:
        world, story = step
        told.append(story)
    return told[::-1]


def main() -> int:
    """Explore, then plant the bugs."""
    began = time.process_time()
    count, problem, story = explore()
    took = time.process_time() - began
    print(f"saves: {count:,} states, {took:.1f} s: {problem or 'nothing found'}")  # noqa: T201 - for people
    for line in story:
        print(f"  {line}")  # noqa: T201
    missed = 0
    for name, claims in PLANTED.items():
        _, found, _ = explore(claims)
        missed += not found
        print(f"  planted: {name}: {found or 'NOT FOUND'}")  # noqa: T201
    return 1 if problem or missed else 0


if __name__ == "__main__":
    sys.exit(main())
