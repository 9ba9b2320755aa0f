"""What was seen of each fault, and the page that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

from tests.e2e.faults.matrix import POINTS, Case, cases

FAULTS: Final = {
    "entourage": "`kill -9` of `entourage migrate`",
    "agent": "`kill -9` of the agent on the target",
    "entourage-frozen": "`kill -STOP` of `entourage migrate --max-blackout 2s` for 4 s",
    "agent-frozen": "`kill -STOP` of the agent on the target until `entourage` has ended",
    "ssh-frozen": "`kill -STOP` of ssh on the source for 4 s",
    "target-qemu-frozen": "`kill -STOP` of QEMU on the target for 4 s",
    "ssh": "`kill -9` of ssh on the source",
    "source-qemu": "`kill -9` of QEMU on the source",
    "target-qemu": "`kill -9` of QEMU on the target",
    "source-swtpm": "`kill -9` of swtpm on the source",
    "target-swtpm": "`kill -9` of swtpm on the target",
    "tool": "`kill -9` of an external tool, in the step that begins there",
    "source-host": "power cut of the source: what was not synced is lost",
    "target-host": "power cut of the target: what was not synced is lost",
    "link-reset": "the network between both cut, answering RST",
    "link-drop": "the network cut silently, both ways",
    "link-drop-to": "the network cut silently, from source to target",
    "link-drop-fro": "the network cut silently, from target to source",
    "link-mended": "the network cut silently, and mended once a packet was lost",
    "link-lossy": "one in twenty packets between both lost, both ways",
    "link-flaps": "the network cut silently five times for 0.4 s, and mended for 0.2 s each time",
    "link-reorders": "packets between both held up by chance, up to 5 ms, so that they overtake",
    "strangers": "a stranger sends garbage to every port of the target's that listens",
    "source-disk-full": "the source's disk filled to the last block",
    "both-hosts": "power cut of both hosts: what was not synced is lost",
    "source-host-and-agent": "power cut of the source, and `kill -9` of the agent on the target",
    "disk-full": "the target's disk filled to the last block",
    "clock": "the clock set back 400 days on the source, forward 400 on the target",
}
_HEAD: Final = """\
# What happens when something dies

Made by `make test-faults`, which tries each fault at each point of a real migration between two
hosts. The guest has a disk, a NIC, a TPM and an external device, and writes all the time. After
each fault `entourage recover` is run on both hosts, in the more difficult order. Then it is checked
from outside which host has the guest, that every write that was acknowledged is on the disk, that
its TPM is the same, and what is left on either host; and the guest is moved once more, which has to
succeed.

{count} of {all} cases ended so: exactly one host had the guest, and nothing that the guest was told
is written was lost. In {lived} of them it lived on, in the others it was started again.

| Column | Meaning |
| --- | --- |
| point | where the migration is when the fault happens; the table below names each point |
| expected | which host has to have the guest afterwards, and whether it may be dead: only if a part of its own machine was killed while it ran there. Written down before anything was tried (`tests/e2e/faults/matrix.py`) |
| status | the exit status of `entourage migrate` ([cli.md](cli.md#exit-status)); `-` where that was killed |
| who has it | which host had the guest |
| out | the longest time, in seconds, without an answer to a ping (each 5 ms), from the fault to the end of the recovery, restarts of hosts and of `recover` included |
| left | what was found on the host that does not have the guest |

[recovery.md](recovery.md) says what to type after such a fault. The guests run without KVM, on two
cores: the times show which cases are fast and which have to wait for something, not how fast your
machine would be.
"""  # noqa: E501 - a row of a Markdown table is one line


@dataclass(frozen=True)
class Row:
    """What was seen of one case.

    Attributes:
        case: The fault and its point.
        status: The exit status of ``entourage migrate``; None where it was killed.
        owner: ``source`` or ``target``.
        lives: Whether the guest lived on.
        out: Seconds without an answer to a ping.
        left: What was left over.
    """

    case: Case
    status: int | None
    owner: str
    lives: bool
    out: float
    left: str


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the page."""
    lived = sum(row.lives for row in rows)
    head = _HEAD.format(count=len(rows), all=len(cases()), lived=lived)
    lines = [head, "| point | the migration stands |", "| --- | --- |"]
    lines += [f"| {name} | `{point}` |" for name, point in POINTS.items()]
    for fault, of_it in groupby(rows, lambda row: row.case.fault):
        lines += [
            f"\n## {FAULTS[fault]}\n",
            "| point | expected | status | who has it | out | left |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in of_it:
            status = "-" if row.status is None else row.status
            guest = row.owner if row.lives else f"{row.owner}, started again"
            out = f"{row.out:.2f}" if row.lives else "died"
            expected = " or ".join(row.case.owners)
            expected += "" if row.case.survives else ", may be dead"
            cells = [row.case.point, expected, status, guest, out, row.left]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    path.write_text("\n".join(lines) + "\n")
