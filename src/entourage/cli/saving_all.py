"""``entourage save --all`` and ``restore --all``: one machine after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from entourage.checkpoint import everything
from entourage.checkpoint.requests import restore_request, save_request
from entourage.cli import domains
from entourage.cli.migrate import attempt
from entourage.cli.tell import say, tell
from entourage.errors import EntourageError, UsageError
from entourage.hosts.route import host_of
from entourage.hypervisors.saved.storage import REMOVED_WITHIN, Given, Result, Storage
from entourage.report.text import clean
from entourage.settings.model import Settings
from entourage.source.request import Request

_SOME_STAYED = 4
_RAISED = 1


def save_all(
    settings: Settings,
    directory: str,
    *,
    at_shutdown: bool,
    patience: float,
    tool: str | None,
    json: bool,
    quiet: bool,
) -> int:
    """Save each of Entourage's own machines that runs; returns the exit status.

    Args:
        settings: This host's.
        directory: Where to: each goes into a directory of its name.
        at_shutdown: What cannot be saved is shut down, and what does not shut down is ended.
        patience: Seconds for a guest to shut down.
        tool: An external tool for every class.
        json: Print events.
        quiet: Show less.
    """
    if host_of(directory):
        raise UsageError("--all saves onto this host", remedy="name a directory of it")
    at_shutdown = at_shutdown and asyncio.run(everything.is_going_down())
    names = asyncio.run(everything.running(settings))
    try:
        _answered(directory, everything.make_place, settings, directory)
    except EntourageError as error:
        if not at_shutdown:
            raise
        tell(error)
        for name in names:  # none can be saved
            _shut_down(settings, name, patience)
        return _SOME_STAYED if names else 0
    failed = 0
    for name in names:

        async def request(note: Callable[[str], None], name: str = name) -> Request:
            del note
            return await save_request(settings, name, str(Path(directory, name)), tool=tool)

        try:
            _answered(directory, everything.tidy, settings, directory, name, within=REMOVED_WITHIN)
        except EntourageError as error:  # the others are saved all the same; this one says why not
            tell(error)
        status, interrupted = asyncio.run(
            attempt(request, json=json, verbose=False, quiet=quiet, dry_run=False)
        )
        failed += status != 0
        if interrupted:
            return _interrupted("saved", names[names.index(name) + 1 :], failed)
        if at_shutdown and status in {_RAISED, 2, 3, 4}:  # else it is not this host's for sure
            _shut_down(settings, name, patience)
    return _SOME_STAYED if failed else 0


def _answered(
    directory: str, work: Callable[[*Given], Result], *args: *Given, within: float | None = None
) -> Result:
    """Do something in the directory; raises HypervisorError where its storage does not answer.

    Nobody is there to press Ctrl-C while a host shuts down, or comes up.
    """
    return asyncio.run(Storage(Path(directory), "").do(work, *args, within=within))


def _shut_down(settings: Settings, name: str, patience: float) -> None:
    """Have a machine that cannot be saved end well, or at least end."""
    for force in (False, True):
        how = "ended" if force else "shut down"
        say(clean(f"entourage: {name} cannot be saved, and is {how}"))
        try:
            asyncio.run(domains.switch_off(settings, name, force=force, patience=patience))
        except UsageError as error:  # it does not run any more
            tell(error)
            return
        except EntourageError as error:
            tell(error)
        else:
            return


def restore_all(
    settings: Settings, directory: str, *, tool: str | None, json: bool, quiet: bool
) -> int:
    """Restore each save in a directory, and remove it; returns the exit status.

    Args:
        settings: This host's.
        directory: Where they are.
        tool: An external tool for every class.
        json: Print events.
        quiet: Show less.
    """
    failed = 0
    paths = _answered(directory, everything.to_restore, settings, directory)
    for path in paths:

        async def request(note: Callable[[str], None], path: Path = path) -> Request:
            del note
            return await restore_request(settings, str(path), tool=tool)

        status, interrupted = asyncio.run(
            attempt(request, json=json, verbose=False, quiet=quiet, dry_run=False)
        )
        try:
            _answered(directory, everything.forget, path, within=REMOVED_WITHIN)
        except EntourageError as error:
            status = tell(error)
        failed += status != 0
        if interrupted:
            left = [str(one) for one in paths[paths.index(path) + 1 :]]
            return _interrupted("restored", left, failed)
    return _SOME_STAYED if failed else 0


def _interrupted(done: str, left: Sequence[str], failed: int) -> int:
    """Ctrl-C is meant for all of them: says which are left as they were; the exit status."""
    if left:
        say(clean(f"entourage: interrupted; not {done}: {', '.join(left)}"))
    return _SOME_STAYED if left or failed else 0
