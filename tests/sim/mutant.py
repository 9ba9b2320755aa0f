"""A bug that is planted in the source of one of the engine's functions."""

from __future__ import annotations

import contextlib
import inspect
import sys
import textwrap
from collections.abc import Generator
from typing import Any, NamedTuple


class Mutant(NamedTuple):
    """One planted bug.

    Attributes:
        name: What is wrong.
        owner: The module or class that has the function.
        function: The function.
        old, new: What stands in its source, and what is to.
        within: Seeds, in which it must be found.
    """

    name: str
    owner: Any
    function: str
    old: str
    new: str
    within: int = 1000


@contextlib.contextmanager
def planted(mutant: Mutant) -> Generator[None]:
    """Have the engine run with the bug while the context lasts."""
    was = inspect.getattr_static(mutant.owner, mutant.function)
    plain: Any = getattr(was, "__func__", was)
    source = textwrap.dedent(inspect.getsource(plain))
    if source.count(mutant.old) != 1:
        raise LookupError(f"{mutant.name}: {mutant.old!r} stands {source.count(mutant.old)} times")
    module = inspect.getmodule(plain)
    assert module is not None
    scope = dict(vars(module))
    code = compile(source.replace(mutant.old, mutant.new), f"<{mutant.name}>", "exec")
    exec(code, scope)  # noqa: S102 - that is what a mutant is
    owners = [mutant.owner, *_importers(was)]
    for owner in owners:
        setattr(owner, mutant.function, scope[mutant.function])
    try:
        yield
    finally:
        for owner in owners:
            setattr(owner, mutant.function, was)


def _importers(function: Any) -> list[Any]:
    """The modules that have imported a function by its name."""
    name = getattr(function, "__name__", "")
    ours = (module for key, module in sys.modules.items() if key.startswith("entourage."))
    return [module for module in ours if getattr(module, name, None) is function]
