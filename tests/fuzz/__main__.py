"""``python -m tests.fuzz``: mutated inputs for everything that reads what others have written.

Each of them is read with an error of Entourage's own, or without one, and within two seconds.
``--seed`` repeats a run; an input that breaks this is kept in ``var/fuzz``.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import hashlib
import itertools
import logging
import sys
import time
import traceback
from pathlib import Path

from entourage.errors import EntourageError
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import Target, targets

_LONGEST = 2.0
_HANGS = 30
_KEPT = Path("var/fuzz")
_TURN = 0.25  # seconds that one target has, before it is the next one's turn


async def _broken(target: Target, data: bytes) -> tuple[str, str]:
    """What is wrong with how an input is taken: in a word, and whole; empty where nothing is."""
    faulthandler.dump_traceback_later(_HANGS, exit=True)
    began = time.monotonic()
    try:
        await target.take(data)
    except EntourageError as error:
        if not error.message:
            return "no message", "an error without a message"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/entourage/" in frame.filename] or frames
        where = f"{type(error).__name__} {ours[-1].filename}:{ours[-1].lineno}"
        return where, traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
    took = time.monotonic() - began
    return ("slow", f"it took {took:.1f} s") if took > _LONGEST else ("", "")


async def _fuzz(seed: str, seconds: float, only: str) -> int:
    found = [target for target in targets() if only in ("", target.name)]
    mutators = {target.name: Mutator(f"{seed} {target.name}", target.examples) for target in found}
    counts, faults = dict.fromkeys(mutators, 0), dict[str, set[str]]()
    for target in found:
        for example in target.examples:
            where, problem = await _broken(target, example)
            if problem:
                faults.setdefault(target.name, set()).add(where)
                print(f"{target.name}: an example\n{problem}", flush=True)  # noqa: T201
    until = time.monotonic() + seconds
    for target in itertools.cycle(found):
        if time.monotonic() > until:
            break
        batch = time.monotonic() + _TURN
        while time.monotonic() < batch:
            data = mutators[target.name].next()
            counts[target.name] += 1
            where, problem = await _broken(target, data)
            if not problem or where in faults.setdefault(target.name, set()):
                continue
            faults[target.name].add(where)
            _KEPT.mkdir(parents=True, exist_ok=True)
            kept = _KEPT / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
            kept.write_bytes(data)
            print(f"{target.name}: {kept}\n{problem}", flush=True)  # noqa: T201
    for name, count in counts.items():
        print(f"{name:12} {count:8} inputs, {len(faults.get(name, ()))} faults")  # noqa: T201
    return 1 if any(faults.values()) else 0


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--only", default="", help="one target")
    parser.add_argument("--input", type=Path, help="a kept input, for --only's target")
    asked = parser.parse_args()
    if asked.input:
        [target] = [one for one in targets() if one.name == asked.only]
        _, problem = asyncio.run(_broken(target, asked.input.read_bytes()))
        print(problem or "taken as it should be")  # noqa: T201
        return 1 if problem else 0
    logging.disable()  # what a peer says wrong is told there, and is not looked at here
    return asyncio.run(_fuzz(asked.seed, asked.seconds, asked.only))


if __name__ == "__main__":
    sys.exit(main())
