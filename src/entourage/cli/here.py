"""The words of the commands for this host's domains, and of those for when the night was bad."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entourage.cli import complete
from entourage.cli.params import Config, Connect, DomainName, Json
from entourage.cli.tell import say
from entourage.report.text import clean

if TYPE_CHECKING:
    from entourage.settings.model import Settings

# Commands import what they need when they run: `--help` and a shell's TAB must not wait for it.
# ruff: noqa: PLC0415


def start(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE.toml|NAME",
            help="A domain's file, or the name of a domain that is off.",
            autocompletion=complete.domains_and_files,
        ),
    ],
    *,
    connect: Connect = None,
    config: Config = None,
) -> None:
    """Start a domain."""
    from entourage.cli import domains, options

    domains.start(_settings(config), options.domain_file(what), what, connect)


def list_(
    *,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also those that are off, and those that left.")
    ] = False,
    connect: Connect = None,
    json: Json = False,
    config: Config = None,
) -> None:
    """List the domains of this host."""
    from entourage.cli import domains

    domains.list_domains(_settings(config), everything=everything, as_json=json, connect=connect)


def show(
    domain: DomainName, *, connect: Connect = None, json: Json = False, config: Config = None
) -> None:
    """Show a domain as it runs, in the words of a domain file."""
    from entourage.cli import domains

    domains.show(_settings(config), domain, as_json=json, connect=connect)


def console(domain: DomainName, *, connect: Connect = None, config: Config = None) -> None:
    """Have the serial console of a guest on this terminal; ^] leaves it."""
    from entourage.cli import console

    console.console(_settings(config), domain, connect)


def stop(
    domain: DomainName,
    *,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Pull the plug instead of asking the guest.")
    ] = False,
    timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the guest may take.")
    ] = "60s",
    connect: Connect = None,
    config: Config = None,
) -> None:
    """Shut a domain down."""
    from entourage.cli import domains, options

    patience = options.duration("--timeout", timeout)
    settings = _settings(config)
    domains.stop(settings, domain, force=force, patience=patience, connect=connect)


def status(
    *,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also what is settled: where domains went.")
    ] = False,
    json: Json = False,
    config: Config = None,
) -> None:
    """Say what is under way here, what is in doubt, and what to type."""
    from entourage.cli import standing

    standing.status(_settings(config), everything=everything, as_json=json)


def recover(
    domain: Annotated[
        str | None,
        typer.Argument(
            metavar="DOMAIN", help="Its name; all, if left out.", autocompletion=complete.domains
        ),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what there is to settle.")
    ] = False,
    target_is_fenced: Annotated[
        bool,
        typer.Option(
            "--target-is-fenced",
            help="I vouch that the other host is off and that its copy will never run again.",
        ),
    ] = False,
    json: Json = False,
    config: Config = None,
) -> int:
    """Settle migrations that a crash or a lost link left in doubt.

    Safe to run twice, and on either host. It asks the other host what it decided; while that cannot
    be reached, nothing is guessed.
    """
    from entourage.cli import standing

    return standing.recover(
        _settings(config), domain, dry_run=dry_run, fenced=target_is_fenced, as_json=json
    )


def agent(
    *,
    config: Config = None,
    source: Annotated[str, typer.Option(help="Only for machines of the host of this name.")] = "",
    forced: Annotated[
        bool, typer.Option("--forced", help="As the command of a key in authorized_keys.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="For domains that are off.")] = False,
) -> None:
    """Be the other end of a migration, on standard input and output; `migrate` starts it by ssh."""
    # ``__main__`` takes the command before it comes here, but for help.
    del config, source, forced, offline


def _settings(config: Path | None) -> Settings:
    from entourage.cli import options

    return options.read_settings(config, lambda note: say(clean(f"entourage: note: {note}")))
