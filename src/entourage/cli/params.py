"""What several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from entourage.cli import complete

# The mark keeps the lines as they are.
EXIT_STATUS_HELP: Final = """\b
Exit status:
  0  done: it moved
  1  it failed
  2  wrong usage or settings
  3  refused, nothing was touched
  4  rolled back: it runs on the source
  5  it moved, but the source is not cleaned up
  6  in doubt who runs it: see `entourage status`
"""
RECOVER_STATUS_HELP: Final = """\b
Exit status:
  0  settled, or there was nothing to settle
  1  it failed
  2  wrong usage or settings
  5  decided, but this host is not cleaned up, or a guest may stand still here
  6  still in doubt
"""

Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Settings in TOML, or an xend-config.sxp.  [default: /etc/entourage/entourage.toml]",
        show_default=False,
    ),
]
Connect = Annotated[
    str | None,
    typer.Option(
        "--connect",
        "-c",
        metavar="URI",
        help="The libvirt that has the domain, as virsh has it.  [default: qemu:///system]",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DomainName = Annotated[
    str, typer.Argument(metavar="DOMAIN", help="Its name.", autocompletion=complete.domains)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would be done, and what is against it.")
]
Events = Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every step.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show warnings, errors and how it ended.")
]
Tool = Annotated[
    str | None,
    typer.Option(metavar="COMMAND", help="External migration tool for every class of device."),
]
SshOptions = Annotated[
    list[str] | None,
    typer.Option("--ssh-option", "-o", metavar="OPTION", help="For ssh, as Port=2222; repeatable."),
]
