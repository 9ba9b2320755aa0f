"""The words of ``entourage attend``."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entourage.cli import complete
from entourage.cli.params import Config, Json

if TYPE_CHECKING:
    from entourage.settings.model import Settings

# Commands import what they need when they run: `--help` and a shell's TAB must not wait for it.
# ruff: noqa: PLC0415

_ANSWERS_WITHIN = 60.0


def attend(
    domain: Annotated[
        str | None,
        typer.Argument(metavar="DOMAIN", help="Its name.", autocompletion=complete.domains),
    ] = None,
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Say whether the domain is attended, and how.")
    ] = False,
    timeline: Annotated[
        bool,
        typer.Option("--timeline", help="Draw the domain's last attended migration from here."),
    ] = False,
    off: Annotated[
        bool, typer.Option("--off", help="Attend the domain no more; all, if left out.")
    ] = False,
    on: Annotated[bool, typer.Option("--on", help="Attend it again; all, if left out.")] = False,
    answer: Annotated[
        bool, typer.Option("--answer", help="For another host's daemon, by ssh: reach this one's.")
    ] = False,
    json: Json = False,
    config: Config = None,
) -> int:
    """Attend migrations that another tool drives, as `virsh migrate`; without options, as a daemon.

    A domain of libvirt's is attended where /etc/entourage/domains/NAME.toml, or its XML's metadata,
    has a device for Entourage. These devices then go through their steps within its migration.
    """
    if answer:  # ``__main__`` takes it where it comes first
        from entourage.cli.answer import answer as be_the_way

        return be_the_way(["--config", str(config)] if config else [])
    from entourage.cli import options
    from entourage.cli.tell import say
    from entourage.errors import UsageError
    from entourage.report.text import clean

    settings = options.read_settings(config, lambda note: say(clean(f"entourage: note: {note}")))
    asks = check + timeline + off + on
    if asks > 1 or (domain and not asks) or ((check or timeline) and not domain):
        raise UsageError(
            "attend takes one of --check DOMAIN, --timeline DOMAIN, --off [DOMAIN],"
            " --on [DOMAIN], or nothing",
            remedy="`entourage attend --help` tells what each does",
        )
    if check:
        return _check(settings, domain or "", as_json=json)
    if timeline:
        return _draw(settings, domain or "")
    if off or on:
        return _switch(settings, domain or "*", off=off)
    from entourage.attend.daemon import main

    return main(settings)


def _check(settings: Settings, name: str, *, as_json: bool) -> int:
    from entourage.attend.shown import lines, read_all
    from entourage.cli.output import put, put_json
    from entourage.errors import UsageError

    found = [one for one in read_all(settings) if name in {one.domain, one.uuid}]
    if not found:
        _ask(settings, {})  # says so where there is no daemon
        raise UsageError(
            f"{name} is not attended: it does not run here, or has no device for Entourage",
            remedy=f"`entourage show {name}` lists its devices; docs/attend.md says how to add one",
        )
    one = found[0]  # another one of that name, which has gone, may still be shown
    if as_json:
        put_json(one)
    else:
        put(*lines(one))
    return 1 if one.problem or one.off else 0


def _draw(settings: Settings, name: str) -> int:
    from entourage.attend.shown import last_events
    from entourage.cli.audience import show_ending
    from entourage.errors import UsageError
    from entourage.report.outlet import Outlet

    events = last_events(settings, name)
    if not events:
        raise UsageError(
            f"no attended migration of {name} has begun here since this host was booted",
            remedy="it is the source that knows of it",
        )
    out = Outlet(sys.stdout)
    show_ending(out, events, verbose=True)
    out.close()
    return 0


def _switch(settings: Settings, name: str, *, off: bool) -> int:
    from entourage.cli.output import put
    from entourage.errors import EntourageError

    answer = _ask(settings, {"off" if off else "on": name})
    if refused := answer.get("refuse"):
        raise EntourageError(refused)
    put(answer.get("done", ""))
    return 0


def _ask(settings: Settings, asked: dict[str, str]) -> dict[str, str]:
    """Ask the daemon.

    Raises:
        UsageError: There is none.
    """
    import msgspec

    from entourage.errors import UsageError, plain_words

    path = Path(settings.paths.run, "attend", "control")
    try:
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.settimeout(_ANSWERS_WITHIN)
            daemon.connect(str(path))
            daemon.sendall(msgspec.json.encode(asked) + b"\n")
            with daemon.makefile("rb") as answer:
                line = b"\n"
                while line == b"\n":  # it works on the answer
                    line = answer.readline()
                return msgspec.json.decode(line, type=dict[str, str])
    except (OSError, msgspec.MsgspecError) as error:
        raise UsageError(
            f"the daemon does not answer: {plain_words(error)}",
            remedy="systemctl start entourage-attend",
        ) from error
