"""The command line: which commands there are, and what becomes of an error."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from entourage.cli import attend, fleet, here, move, saving
from entourage.cli.params import EXIT_STATUS_HELP, RECOVER_STATUS_HELP
from entourage.cli.tell import INTERRUPTED, say, tell, tell_bug
from entourage.errors import EntourageError
from entourage.report.text import clean
from entourage.version import __version__

app = typer.Typer(
    name="entourage",
    help="Move a running virtual machine, with everything attached to it, to another host.",
    epilog=EXIT_STATUS_HELP,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def run(argv: Sequence[str]) -> int:
    """Run a command line; returns the exit status. Nothing that a user types is a traceback."""
    if not argv and "_ENTOURAGE_COMPLETE" not in os.environ:
        return run(["--help"]) or 2
    try:
        command = typer.main.get_command(app)
        status = command.main(list(argv), prog_name="entourage", standalone_mode=False)
    except SystemExit as error:
        status = error.code
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last place where it can be told in one line
        status = _told(error, verbose=any(word in {"-v", "--verbose"} for word in argv))
    return status if isinstance(status, int) else 0


def _told(error: Exception, *, verbose: bool) -> int:
    if isinstance(error, EntourageError):
        return tell(error, verbose=verbose)
    if hasattr(error, "format_message"):
        return _tell_usage(error)
    return tell_bug(error, verbose=verbose)


def _tell_usage(error: Exception) -> int:
    """What typer has to say of words that it does not know."""
    message = str(error.format_message()).strip().rstrip(".")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "entourage")
    say(clean(f"entourage: {message[:1].lower()}{message[1:]}"))
    say(clean(f"  remedy: `{command} --help` tells what there is"))
    return int(getattr(error, "exit_code", 2))


def _print_version(value: bool) -> None:  # noqa: FBT001 - typer calls it so
    if value:
        typer.echo(f"entourage {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the traceback of what is a bug.")
    ] = False,
) -> None:
    del version, verbose  # both are looked at before


app.command(epilog=EXIT_STATUS_HELP, short_help="Move a running domain to another host.")(
    move.migrate
)
app.command(epilog=EXIT_STATUS_HELP, short_help="Say what a migration would do.")(move.check)
app.command(epilog=EXIT_STATUS_HELP, short_help="Save a running domain into a directory.")(
    saving.save
)
app.command(epilog=EXIT_STATUS_HELP, short_help="Restore a saved domain.")(saving.restore)
app.command(short_help="Show what is saved.")(saving.saved)
app.command()(here.start)
app.command(name="list")(here.list_)
app.command()(here.show)
app.command()(here.console)
app.command()(here.stop)
app.command()(here.status)
app.command(epilog=RECOVER_STATUS_HELP, short_help="Settle what is in doubt.")(here.recover)
app.command(short_help="Attend migrations that another tool drives.")(attend.attend)
app.command()(fleet.cordon)
app.command()(fleet.uncordon)
app.command()(fleet.room)
app.command()(fleet.abort)
app.add_typer(fleet.hosts, name="hosts")
app.command(epilog=fleet.FLEET_STATUS_HELP, short_help="Say which domain would go where.")(
    fleet.plan
)
app.command(epilog=fleet.FLEET_STATUS_HELP, short_help="Empty a host.")(fleet.evacuate)
app.command(
    name="restore-home",
    epilog=fleet.FLEET_STATUS_HELP,
    short_help="Move back what evacuations have moved away.",
)(fleet.restore_home)
app.add_typer(fleet.campaign, name="campaign")
app.add_typer(fleet.fleet, name="fleet")
app.command(hidden=True)(here.agent)
