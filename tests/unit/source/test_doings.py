"""What is told is told of what is done."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import entourage.source
from entourage.events import Kind
from entourage.source.doings import DOINGS

SOURCES = Path(entourage.source.__file__).parent


def test_each_kind_has_its_words() -> None:
    assert set(DOINGS) == set(get_args(Kind))
    assert [kind for kind, doing in DOINGS.items() if doing.moves] == ["move"]
    assert [kind for kind, doing in DOINGS.items() if not doing.runs_there] == ["save"]
    for doing in DOINGS.values():
        assert doing.stuck.format(name="web1", source="a")


def test_what_is_different_is_in_the_table_alone() -> None:
    """Nobody else compares a kind: one that is added would be forgotten there."""
    found = [
        f"{path.name}:{node.lineno}"
        for path in sorted(SOURCES.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Attribute)
        and node.left.attr == "kind"
    ]
    assert found == []
