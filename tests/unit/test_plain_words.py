"""No number of the system's, no frame and no JSON reaches a user.

An error names its file, its host where that is another, and what can be done.
"""

from __future__ import annotations

import ast
import errno
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from entourage import errors
from entourage.cli.tell import lines_for
from entourage.errors import EntourageError, Refused, plain_words, what_to_do
from entourage.hosts.frames import Fault, revived
from entourage.steps import Refusal

SOURCE = Path(__file__).parents[2] / "src" / "entourage"
FILES = sorted(SOURCE.rglob("*.py"))
_OF_THE_SYSTEM = frozenset({"OSError", "ConnectionError", "PermissionError"})


@cache
def parsed(path: Path) -> ast.Module:
    """The tree of a file; most of what these tests take is to make it."""
    return ast.parse(path.read_text())


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
    for handler in _handlers(tree):
        if not handler.name:
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


# Whoever asks them adds which ports are to be opened, and on which host.
_REMEDY_FOLLOWS = frozenset({"dataway"})


def _handlers(tree: ast.AST) -> Iterator[ast.ExceptHandler]:
    """What takes errors of the system's."""
    for handler in ast.walk(tree):
        if isinstance(handler, ast.ExceptHandler) and _names(handler.type) & _OF_THE_SYSTEM:
            yield handler


def _ours() -> set[str]:
    """The names of all error classes of the source, whichever module has them."""
    known, bases = {"EntourageError"}, dict[str, set[str]]()
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {base.id for base in node.bases if isinstance(base, ast.Name)}
    while more := {name for name, over in bases.items() if over & known} - known:
        known |= more
    return known


def without_remedy(tree: ast.AST, ours: set[str]) -> Iterator[int]:
    """The lines in which an error of ours is made of one of the system's, and says no remedy."""
    for handler in _handlers(tree):
        for node in (inner for statement in handler.body for inner in ast.walk(statement)):
            match node:
                case ast.Raise(exc=ast.Call(func=ast.Name(id=kind), keywords=given)) if (
                    kind in ours and "remedy" not in {each.arg for each in given}
                ):
                    yield node.lineno
                case _:
                    pass


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_handler_shows_an_oserror_as_python_does(path: Path) -> None:
    lines = path.read_text().splitlines()
    found = [
        f"{path.name}:{number}: {lines[number - 1].strip()}"
        for number in raw_words(parsed(path))
        if "error.strerror" not in lines[number - 1]
    ]
    assert found == [], "say plain_words(error)"


def test_whoever_tells_of_one_says_what_to_do() -> None:
    ours = _ours()
    found = [
        f"{path.name}:{number}"
        for path in FILES
        if path.stem not in _REMEDY_FOLLOWS
        for number in without_remedy(parsed(path), ours)
    ]
    assert found == [], "say remedy=what_to_do(error), or better"


def test_it_finds_one() -> None:
    handler = "try:\n    x()\nexcept (OSError, ValueError) as error:\n    raise QemuError('y'"
    assert list(without_remedy(ast.parse(f"{handler})\n"), {"QemuError"})) == [4]
    assert list(without_remedy(ast.parse(f"{handler}, remedy='z')\n"), {"QemuError"})) == []
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


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_of_whatever_the_system_refuses_there_is_something_to_do(number: int) -> None:
    remedy = what_to_do(OSError(number, "no"))
    assert remedy
    assert str(number) not in remedy


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "room"),
        (errno.EACCES, "root"),
        (errno.ENOENT, "is there"),
        (errno.EHOSTUNREACH, "the way"),
        (errno.EIO, "kernel's log"),
    ],
)
def test_what_there_is_to_do(number: int, said: str) -> None:
    assert said in what_to_do(OSError(number, "no", "/x"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "the way"),
        (ConnectionResetError("Connection lost"), "the way"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "the name"),
        (OSError("said by us"), ""),
        (KeyError("x"), ""),
    ],
)
def test_what_has_no_number_is_not_taken_for_a_file(error: Exception, said: str) -> None:
    assert said in what_to_do(error)
    assert "filesystem" not in what_to_do(error)


def _classes() -> list[type[EntourageError]]:
    found = [EntourageError]
    for one in found:
        found += [each for each in one.__subclasses__() if each not in found]
    public = [each for each in vars(errors).values() if isinstance(each, type)]
    return [one for one in found if one in public]


@pytest.mark.parametrize("kind", _classes(), ids=lambda kind: kind.__name__)
def test_each_error_tells_its_device_its_host_and_what_to_do(kind: type[EntourageError]) -> None:
    """On a terminal, in one line, and as the other host hears of it."""
    fault = Fault(1, kind.__name__, "/x: no space left", "block/d0", "host7", "make room")
    error = revived(fault, "elsewhere")
    for said in (str(error), "\n".join(lines_for(error))):
        for part in ("/x: no space left", "block/d0", "host7", "make room"):
            assert part in said
        assert "Fault" not in said
    # One with fields of its own would arrive without them; who is in doubt each host knows itself.
    plain = kind.__init__ is EntourageError.__init__ and kind is not errors.InDoubt
    assert type(error) is (kind if plain else EntourageError)


def test_a_refusal_tells_the_same_of_each_device() -> None:
    refused = str(Refused([Refusal("block/d0", "b", "/x: no space left", "make room")]))
    for part in ("block/d0", "on b", "/x: no space left", "make room"):
        assert part in refused
