"""The public API as text: each name that a plug-in or a program may import, with its signature.

``python -m tests.unit.api.listing`` writes it to ``public_api.txt``. It is read from the source, so
annotations are as they are written there.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

PUBLIC: Final[Mapping[str, tuple[str, ...]]] = {
    "entourage": (),
    "entourage.devices.base": (),
    "entourage.devices.refusals": (),
    "entourage.domain": (),
    "entourage.errors": (),
    "entourage.events": (),
    "entourage.handover.values": ("Guest",),
    "entourage.hosts.allowed": ("Allowed",),
    "entourage.hosts.beneath": ("Beneath", "NotAllowed"),
    "entourage.hosts.parts": (),
    "entourage.hosts.resources": ("MARKER", "Ledger", "place"),
    "entourage.hypervisors.agentless": (),
    "entourage.hypervisors.backend": (),
    "entourage.hypervisors.base": (),
    "entourage.hypervisors.seams": (),
    "entourage.hypervisors.values": (),
    "entourage.settings.domainfile": ("dump_domain", "load_domain"),
    "entourage.settings.load": ("load_settings",),
    "entourage.settings.model": (),
    "entourage.steps": (),
}
"""The public modules, each with the names that are public in it; none: all without underscore."""
LIST: Final = Path(__file__).with_name("public_api.txt")


def listing() -> str:
    """The list as it is now."""
    return "".join(f"{line}\n" for module in PUBLIC for line in (module, *_module(module)))


def _module(module: str) -> Iterator[str]:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        name = _name(node)
        if name and (name in PUBLIC[module] or (not PUBLIC[module] and not name.startswith("_"))):
            yield from _lines(node, name, "    ")


def _name(node: ast.stmt) -> str:
    """What a statement gives a name to; empty where it gives none."""
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return node.name
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            return name
        case _:
            return ""


def _lines(node: ast.stmt, name: str, indent: str) -> Iterator[str]:
    match node:
        case ast.ClassDef():
            bases = ", ".join(ast.unparse(base) for base in (*node.bases, *node.keywords))
            yield f"{indent}class {name}({bases})" if bases else f"{indent}class {name}"
            for inner in node.body:
                if (part := _name(inner)) and (part == "__init__" or not part.startswith("_")):
                    yield from _lines(inner, part, f"{indent}    ")
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            kind = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
            if any(ast.unparse(one) == "property" for one in node.decorator_list):
                kind = "property"
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            yield f"{indent}{kind} {name}({ast.unparse(node.args)}){returns}"
        case _:
            yield indent + " ".join(ast.unparse(node).split())


if __name__ == "__main__":
    LIST.write_text(listing(), encoding="utf-8")
