"""No number of the system's, no frame and no JSON reaches a user: an error names its file."""

from __future__ import annotations

import ast
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from entourage.errors import EntourageError, plain_words

SOURCE = Path(__file__).parents[2] / "src" / "entourage"


def _names(node: ast.expr | None) -> set[str]:
    """The exceptions that a handler takes."""
    match node:
        case ast.Tuple(elts=parts):
            return {part.id for part in parts if isinstance(part, ast.Name)}
        case ast.Name(id=name):
            return {name}
        case _:
            return set()


def raw_words(tree: ast.AST) -> Iterator[int]:
    """The lines in which a handler of OSErrors shows one as Python does: ``[Errno 28] …``."""
    for handler in ast.walk(tree):
        if not isinstance(handler, ast.ExceptHandler) or not handler.name:
            continue
        if not _names(handler.type) & {"OSError", "ConnectionError", "PermissionError"}:
            continue
        for node in (inner for statement in handler.body for inner in ast.walk(statement)):
            match node:
                case ast.FormattedValue(value=ast.Name(id=shown)) if shown == handler.name:
                    yield node.lineno
                case ast.Call(func=ast.Name(id="str"), args=[ast.Name(id=shown)]) if (
                    shown == handler.name
                ):
                    yield node.lineno
                case _:
                    pass


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.stem)
def test_no_handler_shows_an_oserror_as_python_does(path: Path) -> None:
    lines = path.read_text().splitlines()
    found = [
        f"{path.name}:{number}: {lines[number - 1].strip()}"
        for number in raw_words(ast.parse(path.read_text()))
        if "error.strerror" not in lines[number - 1]
    ]
    assert found == [], "say plain_words(error)"


def test_it_finds_one() -> None:
    bad = "try:\n    x()\nexcept (OSError, ValueError) as error:\n    y(f'it fails: {error}')\n"
    assert list(raw_words(ast.parse(bad))) == [4]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/run/x"), "/run/x: no space left on"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"), "/a -> /b: invalid"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "connection reset by"),
        (OSError("said by us"), "said by us"),
        (EntourageError("no room", device="block/d0"), "block/d0: no room"),
        (TimeoutError(), "it took too long"),
    ],
)
def test_the_words(error: Exception, said: str) -> None:
    assert plain_words(error).startswith(said)
    assert "Errno" not in plain_words(error)
