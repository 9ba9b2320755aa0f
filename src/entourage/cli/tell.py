"""How errors are told: one line, a second one with what can be done, and never a traceback.

``--verbose`` shows the traceback of what is not an error of ours but a bug.
"""

from __future__ import annotations

import sys
import traceback

from entourage.errors import EntourageError, InternalError, Refused, ours
from entourage.report.text import clean, joined

INTERRUPTED = 130
"""The exit status after Ctrl-C where no migration was under way, as a shell has it."""


def lines_for(error: EntourageError, *, verbose: bool = False) -> list[str]:
    """``entourage: block/disk0 on b: no space left``, and the remedy below.

    Args:
        error: What is told.
        verbose: ``--verbose`` was given; else it is advised, where a bug is behind the error.
    """
    if isinstance(error, Refused):
        devices = joined(dict.fromkeys(refusal.device for refusal in error.refusals) or ["it"])
        return [clean(f"entourage: refused: {devices} cannot move; nothing was touched")]
    where = " on ".join(part for part in (error.device, error.host) if part)
    lines = [f"entourage: {where}: {error.message}" if where else f"entourage: {error.message}"]
    more = "" if verbose or bug_behind(error) is None else "--verbose shows where it happened"
    if remedy := "; ".join(part for part in (error.remedy, more) if part):
        lines.append(f"  remedy: {remedy}")
    return [clean(line) for line in lines]


def tell(error: EntourageError, *, verbose: bool = False) -> int:
    """Say what went wrong, and return the exit status.

    Args:
        error: What was raised; ``verbose`` shows the traceback of the bug that led to it, if any.
        verbose: Show more.
    """
    if verbose and (bug := bug_behind(error)) is not None:
        say(*clean_lines("".join(traceback.format_exception(bug))))
    say(*lines_for(error, verbose=verbose))
    return error.exit_code


def bug_behind(error: BaseException | None) -> BaseException | None:
    """The bug that has led to an error; None where none has."""
    while error is not None and not isinstance(error, InternalError):
        error = error.__cause__
    return None if error is None else error.__cause__


def tell_bug(error: Exception, *, verbose: bool) -> int:
    """Say that this is a bug (or what the operating system refused); returns the exit status."""
    if verbose and isinstance(error, OSError):
        say(*clean_lines("".join(traceback.format_exception(error))))
    return tell(ours(error), verbose=verbose)


def clean_lines(text: str) -> list[str]:
    """Each line without what a terminal would obey."""
    return [clean(line.replace("\t", "    ")) for line in text.splitlines()]


def say(*lines: str) -> None:
    """Write lines to standard error; one that is gone is no reason to fail."""
    try:
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # AttributeError: there is none (`2>&-`)
        pass
