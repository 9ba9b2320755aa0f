"""How errors are told: one line, a second one with what can be done, and never a traceback.

``--verbose`` shows the traceback of what is not an error of ours but a bug.
"""

from __future__ import annotations

import sys
import traceback

from entourage.errors import (
    SHOWN_IF_VERBOSE,
    EntourageError,
    InternalError,
    Refused,
    plain_words,
    what_to_do,
)
from entourage.report.text import clean, joined

INTERRUPTED = 130
"""The exit status after Ctrl-C where no migration was under way, as a shell has it."""


def lines_for(error: EntourageError, *, verbose: bool = False) -> list[str]:
    """``entourage: block/disk0 on b: no space left``, and the remedy below.

    Args:
        error: What is told.
        verbose: ``--verbose`` was given, so it is not advised.
    """
    if isinstance(error, Refused):
        devices = joined(dict.fromkeys(refusal.device for refusal in error.refusals) or ["it"])
        return [clean(f"entourage: refused: {devices} cannot move; nothing was touched")]
    where = " on ".join(part for part in (error.device, error.host) if part)
    lines = [f"entourage: {where}: {error.message}" if where else f"entourage: {error.message}"]
    if error.remedy:
        lines.append(f"  remedy: {error.remedy}")
    # The message may quote another error with its remedy.
    return [clean(line.replace(SHOWN_IF_VERBOSE, "") if verbose else line) for line in lines]


def tell(error: EntourageError, *, verbose: bool = False) -> int:
    """Say what went wrong, and return the exit status.

    Args:
        error: What was raised; ``verbose`` shows the traceback of the bug that led to it, if any.
        verbose: Show more.
    """
    if verbose and (bug := _bug_behind(error)) is not None:
        say(*clean_lines("".join(traceback.format_exception(bug))))
    say(*lines_for(error, verbose=verbose))
    return error.exit_code


def _bug_behind(error: BaseException | None) -> BaseException | None:
    while error is not None and not isinstance(error, InternalError):
        error = error.__cause__
    return None if error is None else error.__cause__


def tell_bug(error: Exception, *, verbose: bool) -> int:
    """Say that this is a bug (or what the operating system refused); returns the exit status."""
    if isinstance(error, OSError):
        if verbose:
            say(*clean_lines("".join(traceback.format_exception(error))))
        return tell(EntourageError(plain_words(error), remedy=what_to_do(error)))
    return tell(InternalError(error), verbose=verbose)


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
