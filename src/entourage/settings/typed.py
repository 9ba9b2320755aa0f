"""From what a TOML file holds to a value of one of our types, with every fault told by its key.

msgspec makes the value in the end; what it would say of a fault (``Expected `int` - at `$.a``) is
made out for people here: the key as they wrote it, what is allowed, and what they may have meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import os.path
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from entourage.errors import ConfigError
from entourage.settings.textfile import printable
from entourage.settings.units import (
    DURATION_FORM,
    RATE_FORM,
    SIZE_FORM,
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)

Value = TypeVar("Value", bound=msgspec.Struct)


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """How a number may also be written.

    Attributes:
        parse: From a text to the number; raises ValueError.
        form: What is allowed, for people.
        show: A number for people.
    """

    parse: Callable[[str], float]
    form: str
    show: Callable[[float], str]


DURATION = Unit(parse_duration, DURATION_FORM, format_duration)
SIZE = Unit(parse_size, SIZE_FORM, format_size)
RATE = Unit(parse_rate, RATE_FORM, format_rate)


@dataclasses.dataclass(frozen=True, slots=True)
class Dialect:
    """What is particular to one kind of file.

    Attributes:
        path: The file, for messages.
        units: By key, what an integer also may be written as; every float is a duration.
        forms: By key, what a text that has a pattern must look like.
        elsewhere: By key, the table that it belongs into, for keys put into a wrong one.
        directory: The file's; what a relative path may have meant.
    """

    path: str
    units: Mapping[str, Unit] = dataclasses.field(default_factory=dict[str, Unit])
    forms: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    elsewhere: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    directory: str = ""


def build(raw: Mapping[str, Any], into: type[Value], dialect: Dialect) -> Value:
    """Make a value of a type from the tables of a file.

    Args:
        raw: As tomllib returns it.
        into: The type; its field names as they are encoded are the keys.
        dialect: What is particular to this kind of file.

    Raises:
        ConfigError: A key, a type or a value is wrong.
    """
    plain = _Fitter(dialect).fit(raw, inspect.type_info(into), "")
    try:
        return msgspec.convert(plain, into)
    except msgspec.ValidationError as error:  # what _Fitter does not know of
        raise ConfigError(str(error), path=dialect.path) from error


def fields_of(node: inspect.Type) -> Mapping[str, inspect.Field]:
    """The fields of a struct by their keys; of any other type none.

    Those that may be unset are no file's.
    """
    if isinstance(node, inspect.StructType):
        return {field.encode_name: field for field in node.fields if not _may_be_unset(field)}
    return {}


def _may_be_unset(field: inspect.Field) -> bool:
    """Whether it is unset where it is not given: of its default, msgspec says nothing then."""
    has_default = not (field.default is field.default_factory is msgspec.NODEFAULT)
    return not (field.required or has_default)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean x`` where a known word is close, else nothing."""
    by_form = {other.lower().replace("_", "-"): other for other in known}
    close = difflib.get_close_matches(word.lower().replace("_", "-"), by_form, n=1, cutoff=0.6)
    return f"; did you mean {by_form[close[0]]!r}" if close else ""


def named(value: object) -> str:
    """A value of a TOML file for people: its kind, and the value where it is short."""
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "a boolean"), (str, "a text"), (int, "a whole number"), (float, "a number"),
        (dict, "a table"), (list, "a list"),
    )  # fmt: skip
    kind = next((name for type_, name in kinds if isinstance(value, type_)), "a date or a time")
    if isinstance(value, dict | list):
        return kind
    try:
        text = str(value).lower() if isinstance(value, bool) else repr(value)
    except ValueError:  # an int of more digits than Python prints
        return kind
    return f"{kind}, {text}" if len(text) <= 60 else kind  # noqa: PLR2004 - about a line


class _Fitter:
    """Walks a file's tables beside the type that they are to become."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.handlers: Mapping[type[inspect.Type], Callable[[Any, Any, str], Any]] = {
            inspect.StructType: self._table,
            inspect.DictType: self._mapping,
            inspect.VarTupleType: self._list,
            inspect.ListType: self._list,
            inspect.TupleType: self._list,
            inspect.LiteralType: self._choice,
            inspect.StrType: self._text,
            inspect.BoolType: self._boolean,
            inspect.IntType: self._number,
            inspect.FloatType: self._number,
        }

    def fit(self, value: Any, node: inspect.Type, key: str) -> Any:
        """The value with its units taken off; raises ConfigError where it does not fit."""
        node = _bare(node)
        handler = self.handlers.get(type(node))
        return handler(value, node, key) if handler else value

    def _mapping(self, value: Any, node: inspect.DictType, key: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(key, f"expected a table, not {named(value)}")
        items = cast("dict[str, Any]", value)
        return {
            name: self.fit(item, node.value_type, f"{key}.{name}") for name, item in items.items()
        }

    def _table(self, value: Any, node: inspect.StructType, key: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(key, f"expected a table, [{key}], not {named(value)}")
        table = cast("dict[str, Any]", value)
        fields = fields_of(node)
        for name in table:
            if name not in fields:
                raise self._unknown(f"{key}.{name}" if key else name, name, fields)
        missing = [name for name, field in fields.items() if field.required and name not in table]
        if missing:
            raise self._wrong(key, f"{', '.join(map(repr, missing))} must be given")
        return {
            name: self.fit(item, fields[name].type, f"{key}.{name}" if key else name)
            for name, item in table.items()
        }

    def _unknown(self, key: str, name: str, fields: Mapping[str, inspect.Field]) -> ConfigError:
        hint = did_you_mean(name, fields)
        if not hint and (table := self.dialect.elsewhere.get(name.replace("_", "-"))):
            hint = f"; it belongs under [{table}]"
        return self._wrong(key, f"unknown key{hint}", f"allowed here: {', '.join(fields)}")

    def _list(
        self,
        value: Any,
        node: inspect.VarTupleType | inspect.ListType | inspect.TupleType,
        key: str,
    ) -> list[Any]:
        if not isinstance(value, list):
            each = None if isinstance(node, inspect.TupleType) else _bare(node.item_type)
            tables = isinstance(each, inspect.StructType)
            remedy = f"write [[{key}]], in two brackets" if tables else f"write {key} = […]"
            what = "a list of tables" if tables else "a list"
            raise self._wrong(key, f"expected {what}, not {named(value)}", remedy)
        items = cast("list[Any]", value)
        if isinstance(node, inspect.TupleType):
            if len(items) != len(node.item_types):
                raise self._wrong(key, f"expected {len(node.item_types)} values, not {len(items)}")
            kinds = list(node.item_types)
        else:
            kinds = [node.item_type] * len(items)
            if node.max_length is not None and len(items) > node.max_length:
                raise self._wrong(key, f"{len(items)} are given, and {node.max_length} allowed")
            if len(items) < (node.min_length or 0):
                raise self._wrong(key, f"at least {node.min_length} must be given")
        return [
            self.fit(item, kind, f"{key}[{index}]")
            for index, (item, kind) in enumerate(zip(items, kinds, strict=True))
        ]

    def _choice(self, value: Any, node: inspect.LiteralType, key: str) -> Any:
        if value in node.values and not isinstance(value, bool):
            return value
        known = [str(one) for one in node.values]
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        allowed = " or ".join(repr(one) for one in node.values)
        raise self._wrong(key, f"expected {allowed}, not {named(value)}{hint}")

    def _boolean(self, value: Any, _: inspect.BoolType, key: str) -> bool:
        if not isinstance(value, bool):
            raise self._wrong(key, f"expected true or false, not {named(value)}")
        return value

    def _text(self, value: Any, node: inspect.StrType, key: str) -> str:
        form = self.dialect.forms.get(_last(key), "")
        if not isinstance(value, str):
            raise self._wrong(key, f"expected {form or 'a text in quotes'}, not {named(value)}")
        # re.search is what msgspec does with a pattern, and ours are anchored.
        if node.pattern is not None and not re.search(node.pattern, value):
            allowed = form or f"a text of the form {node.pattern}"
            raise self._wrong(key, f"expected {allowed}, not {named(value)}", self._absolute(value))
        if "\0" in value:
            raise self._wrong(key, "holds a NUL character, which no program can be given")
        return value

    def _absolute(self, value: str) -> str:
        """What a path may have meant that is not absolute."""
        if "/" not in value or value.startswith(("/", "~")) or not self.dialect.directory:
            return ""
        return f"perhaps {os.path.normpath(f'{self.dialect.directory}/{value}')}"

    def _number(self, value: Any, node: inspect.IntType | inspect.FloatType, key: str) -> float:
        whole = isinstance(node, inspect.IntType)
        unit = self.dialect.units.get(_last(key)) if whole else DURATION
        number: Any = value
        if isinstance(value, str) and unit:
            try:
                number = unit.parse(value)
            except ValueError as error:
                raise self._wrong(key, str(error)) from error
        kinds = int if whole else int | float
        if isinstance(number, bool) or not isinstance(number, kinds):
            form = unit.form if unit else "a whole number"
            raise self._wrong(key, f"expected {form}, not {named(value)}")
        bounds = [
            (word, bound, holds)
            for word, bound, holds in (
                ("at least", node.ge, operator.ge),
                ("more than", node.gt, operator.gt),
                ("at most", node.le, operator.le),
                ("less than", node.lt, operator.lt),
            )
            if bound is not None
        ]
        show = unit.show if unit else "{:g}".format
        # A NaN is on neither side of a bound, so each is asked the positive question.
        if not all(holds(number, bound) for _, bound, holds in bounds):
            allowed = " and ".join(f"{word} {show(bound)}" for word, bound, _ in bounds)
            hint = ""
            if unit is SIZE and isinstance(value, int) and value > 0:
                hint = f'bytes are meant; for MiB write {_last(key)} = "{value}M"'
            raise self._wrong(key, f"expected {allowed}, not {named(value)}", hint)
        if not -(2**63) <= number < 2**63 or (isinstance(number, float) and math.isinf(number)):
            raise self._wrong(
                key, f"expected a number that a computer can count, not {named(value)}"
            )
        return number

    def _wrong(self, key: str, message: str, remedy: str = "") -> ConfigError:
        return ConfigError(
            printable(message), path=self.dialect.path, key=printable(key), remedy=remedy
        )


def _bare(node: inspect.Type) -> inspect.Type:
    """The type without what is said about it, and without None: TOML leaves such a key out."""
    if isinstance(node, inspect.Metadata):
        return _bare(node.type)
    if isinstance(node, inspect.UnionType):
        rest = [one for one in node.types if not isinstance(one, inspect.NoneType)]
        return _bare(rest[0]) if len(rest) == 1 else node
    return node


def _last(key: str) -> str:
    """The name of a key without its tables and index."""
    return key.rpartition(".")[2].partition("[")[0]
