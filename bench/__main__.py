"""``python -m bench``: run the scenarios, print what they found, keep it as JSON, draw it."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.catalogue import SCENARIOS
from bench.chart import chart
from bench.figures import to_json
from bench.report import report
from bench.scenarios import Result, Scenario


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 0 if all of it could be run, whatever the figures are."""
    # Labs of its own: those of a demo, or of tests of another version, are not touched.
    os.environ.setdefault("ENTOURAGE_LAB", "/var/tmp/entourage-bench")
    status = 0
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, under five minutes")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these scenarios alone")
    parser.add_argument("--rounds", type=int, help="so many rounds of each")
    parser.add_argument("--rounds-by", nargs="+", metavar="NAME=N", default=[], help="of some")
    parser.add_argument("--out", type=Path, default=Path("var/bench.json"), help="where JSON goes")
    parser.add_argument("--chart", type=Path, help="draw an SVG there")
    parser.add_argument("--list", action="store_true", help="which scenarios there are")
    asked = parser.parse_args(arguments)
    if asked.list:
        for scenario in SCENARIOS:
            print(f"{scenario.name:<20} {scenario.title}")
        return 0
    if os.geteuid() != 0:
        print("The benchmarks make namespaces, loop devices and bridges: run them as root.")
        return 1
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    by_name = dict(word.split("=", 1) for word in asked.rounds_by)
    for scenario in SCENARIOS:
        if asked.only and scenario.name not in asked.only:
            continue
        usual = scenario.quick if asked.quick else scenario.rounds
        rounds = int(by_name.get(scenario.name, asked.rounds or usual))
        if not rounds:
            continue
        try:
            result = _run(scenario, rounds)
        except Exception:  # noqa: BLE001 - the other scenarios tell something all the same
            traceback.print_exc()
            status = 1
            continue
        print(report(result), flush=True)
        # Written after each: what was measured is there, whatever becomes of the rest.
        kept["machine"] = _machine()
        kept[scenario.name] = {
            **dataclasses.asdict(dataclasses.replace(result, rounds=())),
            "rounds": to_json(result.rounds),
        }
        asked.out.write_text(json.dumps(kept, indent=1))
    if asked.chart:
        asked.chart.write_text(chart(kept))
    return status


def _run(scenario: Scenario, rounds: int) -> Result:
    print(f"\n── {scenario.name}: {scenario.title}; {rounds} rounds", flush=True)
    began = time.monotonic()
    result = scenario.run(scenario, rounds, lambda line: print(f"   {line}", flush=True))
    print(f"   {time.monotonic() - began:.0f} s", flush=True)
    return result


def _machine() -> dict[str, Any]:
    """What was measured on; no name of it."""
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True)
    return {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": qemu.stdout.decode().splitlines()[0],
    }


if __name__ == "__main__":
    sys.exit(main())
