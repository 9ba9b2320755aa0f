"""``docs/events.md``, made from ``events.py`` by ``python -m entourage.report.schema``.

A unit test compares the two, so that the document cannot drift from what ``--json`` prints.
"""

from __future__ import annotations

import ast
import inspect
import sys
import typing
from typing import Any, Final, cast

import msgspec

from entourage import events
from entourage.steps import Step

_HEAD: Final = """\
# What `entourage migrate --json` prints

<!-- Made from src/entourage/events.py: python -m entourage.report.schema > docs/events.md -->

| You want to know | Read |
| --- | --- |
| whether it moved, and where the domain runs now | the last line, [`finished`](#finished): `outcome`, `runs_on` |
| why it was refused | each [`device-refused`](#device-refused): `reason`, `remedy` |
| why it was rolled back | [`rollback-started`](#rollback-started): `reason`, `device`, `host` |
| what is left to clean up | `problems` of [`finished`](#finished) |
| how long the guest stood still | `blackout` of [`finished`](#finished); what took the time: [`span-done`](#span-done), [`device-step-done`](#device-step-done) |
| how far it is | [`copy-progress`](#copy-progress), [`step-started`](#step-started) |
| what an external tool printed | [`tool-said`](#tool-said) |

Each line of standard output is one event, a JSON object in UTF-8; nothing else is printed there.
The field `event` names its kind. Fields and kinds are only ever added, never renamed or removed: a
reader must skip what it does not know. The last line is always a `finished`, whatever happened; the
exit status is in [cli.md](cli.md#exit-status).

* `at` is in every event: seconds since the migration began, on the source's monotonic clock. What
  happened on the target is converted to that clock. Events are in the order in which the source
  received them, so an `at` may be smaller than the one before.
* Times are seconds, sizes bytes, rates bytes a second.
* A device is named `class/id`, as `block/disk0`.
* A step is a number: {steps}.
* While the guest stands still nothing is printed; the events of that time are printed as soon as it
  runs again. (In a migration that is not live they are printed at once.)
* A reader that is too slow misses some `copy-progress`, and nothing else.
"""  # noqa: E501 - a row of a Markdown table is one line


def events_markdown() -> str:
    """The whole document."""
    kinds: tuple[type[events.Event], ...] = typing.get_args(events.AnyEvent)
    notes = _field_notes()
    steps = ", ".join(f"{step.value} {step.name}" for step in Step if step is not Step.NONE)
    steps += f"; in `device-recovered` also {Step.NONE.value}, for none"
    parts = [_HEAD.format(steps=steps), "## Events\n"]
    for kind in kinds:
        parts.append(
            f"### `{kind.__struct_config__.tag}`\n\n{_prose(inspect.getdoc(kind) or '')}\n"
        )
        parts.append(_table(kind, notes.get(kind.__name__, {})))
    found = _dedented(msgspec.json.schema(events.AnyEvent))
    schema = msgspec.json.format(msgspec.json.encode(found))
    parts.append("## JSON Schema of a line\n")
    parts.append(f"```json\n{schema.decode()}\n```\n")
    return "\n".join(parts)


def _table(kind: type[events.Event], notes: dict[str, str]) -> str:
    names = [field.name for field in msgspec.structs.fields(kind) if field.name != "at"]
    if not names:
        return "No fields besides `at`.\n"
    schema: dict[str, Any] = msgspec.json.schema(kind)["$defs"][kind.__name__]
    lines = ["| field | type | |", "| --- | --- | --- |"]
    for name in names:
        found = schema["properties"][name]
        lines.append(f"| `{name}` | {_type(found)} | {notes.get(name, '')} |".replace("  |", " |"))
    return "\n".join(lines) + "\n"


def _dedented(schema: Any) -> Any:
    """The same for every Python: since 3.13 it takes the indentation off docstrings itself."""
    match schema:
        case dict():
            found = cast("dict[str, Any]", schema)
            return {
                key: inspect.cleandoc(value) if key == "description" else _dedented(value)
                for key, value in found.items()
            }
        case list():
            return [_dedented(value) for value in cast("list[Any]", schema)]
        case _:
            return schema


def _type(schema: dict[str, Any]) -> str:
    match schema:
        case {"anyOf": [*choices]}:
            return " or ".join(_type(choice) for choice in choices)
        case {"enum": [*values]}:
            return ", ".join(f"`{value}`" for value in values)
        case {"type": "array", "items": items}:
            return f"array of {_type(items)}s"
        case {"$ref": "#/$defs/Step"}:
            return "step"
        case {"$ref": _}:
            return "object"
        case _:
            return str(schema.get("type", "any"))


def _prose(text: str) -> str:
    """What stands in a docstring, as Markdown."""
    return text.replace("``", "`")


def _field_notes() -> dict[str, dict[str, str]]:
    """What events.py says below a field, by class and field."""
    notes: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(events)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, below in zip(node.body, node.body[1:], strict=False):
            match field, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    notes.setdefault(node.name, {})[name] = _prose(" ".join(text.split()))
                case _:
                    pass
    return notes


if __name__ == "__main__":
    sys.stdout.write(events_markdown())
