"""The words of ``entourage save``, ``restore`` and ``saved``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from entourage.checkpoint.disks import Disks
from entourage.cli import complete
from entourage.cli.params import (
    Config,
    DryRun,
    Events,
    Json,
    Quiet,
    SshOptions,
    Tool,
    Verbose,
)
from entourage.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from entourage.settings.model import Settings

# Commands import what they need when they run: `--help` and a shell's TAB must not wait for it.
# ruff: noqa: PLC0415

_Directory = Annotated[
    str | None, typer.Argument(metavar="DIR", help="The save's directory.", show_default=False)
]
_Place = Annotated[
    str | None,
    typer.Argument(
        metavar="DIR|HOST:DIR",
        help="The save's directory, here or on another host.",
        show_default=False,
    ),
]


def save(
    domain: Annotated[
        str | None,
        typer.Argument(
            metavar="DOMAIN",
            help="Its name.",
            autocompletion=complete.domains,
            show_default=False,
        ),
    ] = None,
    directory: _Place = None,
    *,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Each of Entourage's own machines, into DIR/NAME."),
    ] = False,
    at_shutdown: Annotated[
        bool,
        typer.Option("--at-shutdown", help="Of --all: shut down, or end, what cannot be saved."),
    ] = False,
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="How long a guest may take to shut down.")
    ] = "60s",
    checkpoint: Annotated[
        bool,
        typer.Option("--checkpoint", "-c", help="The guest goes on here, as with xl save -c."),
    ] = False,
    paused: Annotated[
        bool,
        typer.Option(
            "--paused", "-p", help="Of --checkpoint: the guest stays paused, as with xl save -p."
        ),
    ] = False,
    disks: Annotated[
        Disks | None,
        typer.Option(
            help="Disks stay where they are and must not change, are copied (as a checkpoint does),"
            " or are yours to keep as they are.",
        ),
    ] = None,
    allow_tpm_rollback: Annotated[
        bool,
        typer.Option(
            "--allow-tpm-rollback", help="A checkpoint's TPM may go back when it is restored."
        ),
    ] = False,
    non_live: Annotated[
        bool, typer.Option("--non-live", help="Stop the guest while its memory is copied.")
    ] = False,
    compress: Annotated[
        bool, typer.Option("--compress", help="Have memory go through zstd.")
    ] = False,
    encrypt: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPIENT", help="Encrypt memory to an age recipient, or a file of them."
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Copy only what was written to its disks since that checkpoint."
        ),
    ] = None,
    remote_command: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help='What runs on the other host, as "entourage".'),
    ] = None,
    ssh_option: SshOptions = None,
    dry_run: DryRun = False,
    tool: Tool = None,
    config: Config = None,
    json: Events = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Save a running domain into a directory, with its TPM; it ends here, unless --checkpoint.

    Its disks stay where they are, or are copied. Where anything goes wrong, it runs on.
    """
    import asyncio
    from collections.abc import Callable

    if everything:
        more = (dry_run, directory, remote_command, ssh_option, compress, encrypt, non_live, since)
        if checkpoint or paused or disks or allow_tpm_rollback or any(more):
            raise _not_with_all("DOMAIN, and what is said of its save,")
        return _save_all(
            domain,  # the only argument
            at_shutdown=at_shutdown,
            timeout=timeout,
            tool=tool,
            config=config,
            json=json,
            quiet=quiet,
        )
    if at_shutdown:
        raise UsageError("--at-shutdown is of --all", remedy="leave it out, or DOMAIN")
    if domain is None or directory is None:
        raise _lacks("DOMAIN and DIR", "entourage save DOMAIN DIR")
    if (allow_tpm_rollback or non_live or paused) and not checkpoint:
        raise UsageError(
            "--allow-tpm-rollback, --non-live and --paused are of a --checkpoint",
            remedy="leave them out",
        )

    async def save_it() -> int:
        from entourage.cli.early import for_save

        async with for_save(config, directory) as agent:
            from entourage.checkpoint.requests import save_request
            from entourage.cli import options
            from entourage.cli.migrate import attempt
            from entourage.source.request import Request

            async def make_request(note: Callable[[str], None]) -> Request:
                typed = options.Typed(remote_command=remote_command, ssh_options=ssh_option or ())
                return await save_request(
                    options.with_typed(options.read_settings(config, note), typed),
                    domain,
                    directory,
                    checkpoint=checkpoint,
                    disks=disks,
                    allow_tpm_rollback=allow_tpm_rollback,
                    live=not non_live,
                    stays_paused=paused,
                    compress=compress,
                    encrypt=encrypt,
                    since=since,
                    tool=tool,
                    dry_run=dry_run,
                )

            ended = await attempt(
                make_request,
                json=json,
                verbose=verbose,
                quiet=quiet,
                dry_run=dry_run,
                agent=agent,
            )
            return ended.status

    return asyncio.run(save_it())


def _save_all(
    directory: str | None,
    *,
    at_shutdown: bool,
    timeout: str,
    tool: str | None,
    config: Path | None,
    json: bool,
    quiet: bool,
) -> int:
    from entourage.checkpoint.everything import usual_place
    from entourage.cli import options
    from entourage.cli.saving_all import save_all

    patience = options.duration("--timeout", timeout)
    settings = _settings(config)
    return save_all(
        settings,
        directory or usual_place(settings),
        at_shutdown=at_shutdown,
        patience=patience,
        tool=tool,
        json=json,
        quiet=quiet,
    )


def _settings(config: Path | None) -> Settings:
    from entourage.cli import options
    from entourage.cli.tell import say
    from entourage.report.text import clean

    return options.read_settings(config, lambda note: say(clean(f"entourage: note: {note}")))


def _lacks(what: str, usage: str) -> UsageError:
    return UsageError(f"{what} must be named", remedy=f"{usage}; or --all")


def _not_with_all(what: str) -> UsageError:
    return UsageError(f"{what} are of one machine, not of --all", remedy="leave them out")


def restore(
    directory: _Directory = None,
    *,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Each save in DIR, which is removed once it is restored."),
    ] = False,
    paused: Annotated[
        bool, typer.Option("--paused", "-p", help="Leave the guest paused, as xl does.")
    ] = False,
    only_copy: Annotated[
        bool,
        typer.Option(
            "--only-copy", help="I vouch that this copy of the directory is the only one restored."
        ),
    ] = False,
    revert: Annotated[
        bool,
        typer.Option(
            "--revert",
            help="Of a checkpoint: I vouch that the domain is off, and give up what it did since.",
        ),
    ] = False,
    identity: Annotated[
        str, typer.Option(metavar="FILE", help="The age identity that decrypts memory.")
    ] = "",
    another: Annotated[
        str,
        typer.Option(
            "--as", metavar="NAME", help="Make another machine of it, with its own UUID and MACs."
        ),
    ] = "",
    net: Annotated[
        list[str] | None,
        typer.Option(metavar="SAVED=HERE", help="Another bridge, as br0=br1; repeatable."),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=PATH", help="Where a copied disk is written to; repeatable."),
    ] = None,
    dry_run: DryRun = False,
    tool: Tool = None,
    config: Config = None,
    json: Events = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Restore a saved domain: it goes on where it was saved. It does so once."""
    import asyncio
    from collections.abc import Callable

    if everything:
        from entourage.checkpoint.everything import usual_place
        from entourage.cli.saving_all import restore_all

        if any((paused, only_copy, revert, identity, another, net, disk, dry_run)):
            raise _not_with_all("what is said of the restore of one, and --dry-run,")
        settings = _settings(config)
        where = directory or usual_place(settings)
        return restore_all(settings, where, tool=tool, json=json, quiet=quiet)
    if directory is None:
        raise _lacks("DIR", "entourage restore DIR")

    async def restore_it() -> int:
        from entourage.cli.early import for_restore

        async with for_restore(config) as agent:
            from entourage.checkpoint.requests import restore_request
            from entourage.cli import options
            from entourage.cli.migrate import attempt
            from entourage.source.request import Request

            async def make_request(note: Callable[[str], None]) -> Request:
                settings = options.read_settings(config, note)
                wanted = options.device_options(options.Devices(nets=net or (), disks=disk or ()))
                return await restore_request(
                    settings,
                    directory,
                    paused=paused,
                    only_copy=only_copy,
                    revert=revert,
                    identity=identity,
                    another=another,
                    nets=wanted.nets,
                    disks=wanted.disks,
                    tool=tool,
                    dry_run=dry_run,
                )

            ended = await attempt(
                make_request,
                json=json,
                verbose=verbose,
                quiet=quiet,
                dry_run=dry_run,
                agent=agent,
            )
            return ended.status

    return asyncio.run(restore_it())


def saved(
    directories: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DIR]...", help="Saves, or directories that hold some."),
    ] = None,
    *,
    json: Json = False,
    config: Config = None,
) -> None:
    """Show what is saved, and whether it can be restored here."""
    import asyncio
    import shlex

    from entourage.checkpoint.saved import saves
    from entourage.cli.output import put, put_json
    from entourage.report.text import size

    settings = _settings(config)
    found = asyncio.run(saves(settings, directories or ["."]))
    if json:
        put_json(found)
        return
    lines: list[str] = []
    for one in found:
        lines.append(f"{one.directory}: {one.domain or 'cannot be read'}")
        if one.domain:
            kind = "checkpoint" if one.checkpoint else "saved     "
            lines.append(f"  {kind} {one.made} on {one.host}, {size(one.size)}")
            lines.append(f"  devices    {', '.join(one.devices) or 'none'}")
        if one.since:
            lines.append(f"  disks      what was written since {one.since}")
        lines += [f"  against    {problem}" for problem in one.against]
        if not one.against:
            revert = " --revert" if one.checkpoint else ""
            lines.append(f"  restore    entourage restore{revert} {shlex.quote(one.directory)}")
    put(*(lines or ["nothing is saved there"]))
