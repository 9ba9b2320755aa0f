"""One call of the external tool: its arguments, its environment, and what counts as failure.

As xend's tpmif.py called it (xen commit abd30192c0), but without a shell, and asked for its exit
status; docs/tool.md is the contract for those who write one.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from entourage.devices.tool.process import ToolProcess
from entourage.errors import DeviceError
from entourage.settings.command import split_command
from entourage.settings.textfile import printable
from entourage.steps import Step

_READS_WITHIN = 5.0  # seconds for a shell to read a script


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call of a tool.

    Attributes:
        command: The setting: the program, and arguments that come first.
        type: What follows ``-type``: ``vbd``, ``vif``, ``vtpm``, ``vusb``, ``pci``, or an
            ``[[external]]`` device's own.
        step: What follows ``-step``; with ``recover`` the last step that went well.
        source: The host it runs on.
        target: What follows ``-host``.
        domain: What follows ``-domname``.
        subtype: What follows ``-subtype``; None leaves that out.
        recover: Put back what was done.
        device: The device's label, ``tpm/tpm0``.
        migration: The migration's id.
        uuid: The domain's.
        error_counts: Whether a line with ``Error`` is a failure.
    """

    command: str
    type: str
    step: Step
    source: str
    target: str
    domain: str
    subtype: str | None = None
    recover: bool = False
    device: str = ""
    migration: str = ""
    uuid: str = ""
    error_counts: bool = True

    @property
    def argv(self) -> list[str]:
        """The program and all its arguments, in the order of 2006; raises ValueError."""
        return [
            *split_command(self.command),
            *("-type", self.type),
            *("-step", str(self.step.value)),
            *("-host", self.target),
            *("-domname", self.domain),
            *(("-subtype", self.subtype) if self.subtype else ()),
            *(("-recover",) if self.recover else ()),
        ]

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, and what the arguments of 2006 do not tell."""
        return {
            **os.environ,
            "ENTOURAGE_MIGRATION": self.migration,
            "ENTOURAGE_DEVICE": self.device,
            "ENTOURAGE_SOURCE": self.source,
            "ENTOURAGE_TARGET": self.target,
            "ENTOURAGE_STEP": str(self.step.value),
            "ENTOURAGE_RECOVER": "1" if self.recover else "",
            "ENTOURAGE_DOMAIN": self.domain,
            "ENTOURAGE_DOMAIN_UUID": self.uuid,
        }

    def start(
        self, on_line: Callable[[str], None] | None = None, *, armed: bool = False
    ) -> ToolProcess:
        """Start it, or have it wait to be released; raises DeviceError."""
        try:
            return ToolProcess(
                self.argv,
                self.environment,
                on_line,
                armed=armed,
                error_counts=self.error_counts,
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise self._error(f"cannot be started: {reason or error}") from error

    async def run(
        self,
        limit: float,
        on_line: Callable[[str], None] | None = None,
        armed: ToolProcess | None = None,
    ) -> None:
        """Call the tool and wait for it.

        Args:
            limit: Seconds that it may take; then its process group is ended.
            on_line: Is told what it prints.
            armed: Its process, if there is one that waits to be released.

        Raises:
            DeviceError: It failed: it printed a line with ``Error``, where that counts, ended with
                another status than 0 or by a signal, took too long, or cannot be started.
        """
        process = armed
        if process is None or not process.release():
            if process:
                await process.end()
            process = self.start(on_line)
        failure = await process.finish(limit)
        if failure:
            words = "" if process.output.error else process.output.last_words()
            raise self._error(
                f"failed: {failure}" + (f"; its last words: {words}" if words else "")
            )

    def _error(self, what: str) -> DeviceError:
        when = f"step {self.step.value} ({self.step.name})"
        if self.recover:
            when = f"recovery from {when}"
        try:
            remedy = f"try it by hand: {printable(shlex.join(self.argv))}"
        except ValueError:
            remedy = "correct the setting"
        program = printable(self.command.split(maxsplit=1)[0] if self.command.split() else "")
        return DeviceError(
            printable(f"the external tool {program} {what}, in {when}"),
            device=self.device,
            host=self.source,
            remedy=remedy,
        )


def check(command: str) -> str | None:
    """Why a command cannot be run on this host, as a sentence; None where it can."""
    try:
        program = split_command(command)[0]
    except ValueError as error:
        return printable(str(error))
    name = printable(program)
    found = shutil.which(program)
    if found is None:
        if "/" not in program:
            return f"{name} is not on PATH"
        if not Path(program).exists():
            return f"{name} does not exist"
        return f"{name} is no program that may be executed"
    try:
        with Path(found).open("rb") as file:
            head = file.read(256)
    except OSError:  # it may be executed, but not read
        return None
    if b"\0" in head:
        return None
    if not head.startswith(b"#!"):
        return f"{name} is a script without a first line as #!/bin/sh, and no shell guesses one"
    return _not_of_its_shell(found, head)


def _not_of_its_shell(script: str, head: bytes) -> str | None:
    """Why the shell of a script's first line cannot read it; None where it can, or is another.

    Those of Xen 3.0.2 to 3.0.4 say ``#!/bin/sh``, and are written for bash. Nothing is run: ``-n``
    only reads.
    """
    if head[2:].split(b"\n")[0].split()[:1] != [b"/bin/sh"]:
        return None
    try:
        done = subprocess.run(
            ["/bin/sh", "-n", script], capture_output=True, check=False, timeout=_READS_WITHIN
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if not done.returncode:
        return None
    said = printable(" ".join(done.stderr.decode(errors="replace").split()))
    return f"/bin/sh cannot read it ({said}); if it is written for bash, set /bin/bash {script}"
