"""What is said when a migration is over: how it ended, in one sentence, and the tables to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from entourage.events import AnyEvent, Finished, MigrationStarted
from entourage.report.plan import plan_table
from entourage.report.table import recovery_table, steps_table
from entourage.report.text import UNICODE, Glyphs, clean, duration
from entourage.report.timeline import timeline
from entourage.report.view import View
from entourage.steps import Step


def ending(
    events: Iterable[AnyEvent],
    *,
    width: int = 80,
    glyphs: Glyphs = UNICODE,
    verbose: bool = False,
    quiet: bool = False,
) -> list[RenderableType]:
    """How it ended, and everything that a person may want to know about it, to be printed in order.

    Args:
        events: All of them.
        width: Columns of the terminal.
        glyphs: The signs to draw with.
        verbose: The table of the steps also where nothing was touched.
        quiet: No tables but of what speaks against it, and of the plan that was asked for.
    """
    events = tuple(events)
    view = View.of(events)
    parts: list[RenderableType | None] = []
    if view.refusals or (view.finished and view.finished.outcome == "can-move"):
        parts.append(plan_of(view, glyphs))
    touched = view.step > Step.TEST or view.rollback is not None
    if (verbose or touched) and not quiet:
        parts.append(steps_table(events, glyphs=glyphs))
    if not quiet:
        parts.append(timeline(events, width=width, glyphs=glyphs))
        if view.finished is None or view.finished.outcome != "saved":  # then nothing had failed
            parts.append(recovery_table(events, glyphs=glyphs))
    if view.finished is not None:
        parts.append(_problems(view.finished.problems))
        parts.append(_sentence(view, view.finished))
    return _spaced([part for part in parts if part is not None])


def plan_of(view: View, glyphs: Glyphs = UNICODE) -> RenderableType:
    """The plan that TEST has made, and what speaks against it."""
    source = view.started.source if view.started else "this host"
    target = view.started.target if view.started else "the other host"
    kind = view.started.kind if view.started else "move"
    return plan_table(
        view.plan, view.refusals, source=source, target=target, kind=kind, glyphs=glyphs
    )


def _spaced(parts: Sequence[RenderableType]) -> list[RenderableType]:
    """An empty line between any two."""
    spaced: list[RenderableType] = []
    for part in parts:
        spaced += [Text(""), part] if spaced else [part]
    return spaced


def _problems(problems: Sequence[str]) -> RenderableType | None:
    if not problems:
        return None
    return Group(
        Text("Left to be done:", style="yellow"),
        *(Text(f"  {clean(problem)}") for problem in problems),
    )


def _sentence(view: View, finished: Finished) -> Text | None:
    """The one line that tells all; None where the error says it already."""
    started = view.started
    domain = clean(started.domain) if started else "the domain"
    source = clean(started.source) if started else "this host"
    target = clean(started.target) if started else "the other host"
    host = clean(finished.runs_on)
    took = duration(finished.seconds)
    still = (
        "" if finished.blackout is None else f"; it stood still for {duration(finished.blackout)}"
    )
    if started and started.kind != "move" and (said := _of_a_save(started, finished)):
        return said
    match finished.outcome:
        case "refused":
            return Text(f"{domain} cannot move to {target}; nothing was touched", style="bold red")
        case "rolled-back":
            return Text(f"{domain} runs on {host or source}, as before{still}", style="bold yellow")
        case "guest-ended":
            return Text(f"{domain} has ended by itself, on {source}", style="bold yellow")
        case "in-doubt":
            runs = f"{domain} runs on {host}; {source} has not recorded it"
            known = runs if host else f"It is not certain who runs {domain}, if anyone"
            text = Text(known, style="bold red")
            return text.append(f": type `entourage recover {domain}`", style="not bold")
        case "failed":
            return Text(f"{domain} was not moved", style="bold red") if started else None
        case "can-move":
            return Text(f"{domain} can move to {target}; nothing was touched", style="bold green")
        case "clean-up-incomplete":
            text = Text(f"{domain} runs on {host}, moved in {took}{still}", style="bold green")
            return text.append(f"; {source} is not cleaned up", style="yellow")
        case _:
            return Text(f"{domain} runs on {host}, moved in {took}{still}", style="bold green")


def _of_a_save(started: MigrationStarted, finished: Finished) -> Text | None:
    """The same of a domain that was saved or restored; None where it is what a move says."""
    domain, source = clean(started.domain), clean(started.source)
    saves = started.kind in {"save", "checkpoint"}
    directory = clean(started.target) if saves else source
    done = "saved in" if saves else "restored from"
    took = duration(finished.seconds)
    match finished.outcome:
        case "refused":
            return Text(f"{domain} cannot be {done} {directory}; nothing was touched", "bold red")
        case "can-move":
            return Text(f"{domain} can be {done} {directory}; nothing was touched", "bold green")
        case "failed":
            return Text(f"{domain} was not {done} {directory}", style="bold red")
        case "in-doubt" if finished.runs_on:
            known = f"{domain} is saved in {directory}" if saves else f"{domain} runs on this host"
            text = Text(f"{known}; that is not recorded", style="bold red")
            return text.append(f": type `entourage recover {domain}`", style="not bold")
        case "rolled-back" if not saves:
            return Text(f"{domain} was not restored; {directory} is as it was", "bold yellow")
        case "moved":
            return Text(f"{domain} is {done} {directory}, in {took}", style="bold green")
        case "saved" | "clean-up-incomplete" if started.kind == "checkpoint":
            still = finished.blackout
            goes_on = "stays paused"
            if still is not None:
                goes_on = f"goes on; it stood still for {duration(still)}"
            left = "; not everything is cleaned up" if finished.problems else ""
            said = f"{domain} is saved in {directory}, in {took}, and {goes_on}"
            return Text(said, style="bold green").append(left, style="yellow")
        case "clean-up-incomplete":
            text = Text(f"{domain} is {done} {directory}, in {took}", style="bold green")
            return text.append("; not everything is cleaned up", style="yellow")
        case _:
            return None
