"""``python -m tests.sim``: the whole engine, simulated, by seeds."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter

from tests.sim.devices import ADDED
from tests.sim.hypervisor import backend
from tests.sim.seams import simulated
from tests.sim.simulate import places, simulate


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--trace", action="store_true", help="show all that happens")
    parser.add_argument("--most", type=int, default=10, help="seeds that fail, then it ends")
    asked = parser.parse_args()
    places()
    began = time.process_time()
    came, endings, bad, steps = Counter[str](), Counter[str](), 0, 0
    gc.collect()
    gc.freeze()
    gc.disable()
    with simulated(backend(), ADDED):
        for number, seed in enumerate(range(asked.first, asked.first + asked.seeds)):
            result = simulate(seed, trace=asked.trace)
            if number % 100 == 99:
                gc.collect()
            came.update(result.came)
            endings[result.ending] += 1
            steps += result.steps
            if asked.trace:
                print("\n".join(result.lines))
                print(f"ended: {result.ending}; {result.points} points, {result.steps} steps")
            if result.violations:
                bad += 1
                faults = "; ".join(map(str, result.faults))
                print(f"seed {seed} ({faults}) ended {result.ending}")
                for each in result.violations:
                    print(f"  => {each}")
                if bad >= asked.most:
                    break
    took = time.process_time() - began
    print(f"{number + 1:,} seeds, {took:.1f} s, {(number + 1) / took:.0f}/s, {steps:,} callbacks")
    print("endings:", ", ".join(f"{name} {count}" for name, count in endings.most_common()))
    print("faults:", ", ".join(f"{name} {count}" for name, count in came.most_common()))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
