"""``make demo-record``: run the demo; docs/demo.txt is what it says, and README has an excerpt.

The excerpt is the first migration: its plan, its table of steps, and its last sentence.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence

from lab.host import REPOSITORY

RECORDING = REPOSITORY / "docs" / "demo.txt"
README = REPOSITORY / "README.md"
COMMAND = "a# entourage migrate web1 b"
_PROGRESS = re.compile(r" +\d+\.\d{3}  ")
_TABLES = ("device ",)
_ENDS = "web1 runs on b"


def excerpt(lines: Sequence[str]) -> list[str]:
    """What README shows of a recording.

    Args:
        lines: Those of the recording.
    """
    begin = lines.index(COMMAND)
    end = next(at for at in range(begin, len(lines)) if lines[at].startswith(_ENDS))
    kept, shown = [COMMAND], False
    for line in lines[begin + 1 : end]:
        if line.startswith(_TABLES):
            kept += [""] * (len(kept) > 1)
            shown = True
        elif not line.strip() or _PROGRESS.match(line):
            shown = False
        if shown:
            kept.append(line)
    return [*kept, "", lines[end]]


def in_readme(readme: str, shown: Sequence[str]) -> str:
    """README with another excerpt in the place of the one that it has."""
    fence = "```\n"
    begin = readme.index(fence + COMMAND) + len(fence)
    return readme[:begin] + "\n".join(shown) + readme[readme.index("\n```", begin) :]


def main() -> int:
    """Record it; the demo's own exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "lab.demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
    )
    sys.stdout.write(done.stdout)
    if done.returncode == 0:
        lines = [line.rstrip() for line in done.stdout.strip().splitlines()]
        RECORDING.write_text("\n".join(lines) + "\n", encoding="utf-8")
        text = README.read_text(encoding="utf-8")
        README.write_text(in_readme(text, excerpt(lines)), encoding="utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
