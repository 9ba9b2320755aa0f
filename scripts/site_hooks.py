"""What the documentation site needs beyond docs/: pages of the repository's root, and its links.

MkDocs calls the functions that begin with ``on_``. The Markdown files are written for whoever reads
them in the repository: their links are paths in it. On the site a link to a page leads to that
page; a link to anything that is no page (a source file, say) becomes its text.
"""

from __future__ import annotations

import importlib
import posixpath
import re
from pathlib import Path
from typing import Any, Final, cast

ROOT: Final = Path(__file__).resolve().parents[1]
OUTSIDE: Final = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "CHANGELOG.md": "changelog.md",
    "lab/README.md": "lab.md",
}
"""Pages that are not in docs/: their path in the repository, and on the site."""
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_FENCED = re.compile(r"(^ *```.*?^ *```[^\n]*$)", re.DOTALL | re.MULTILINE)


def on_config(config: Any) -> Any:
    """Replace each folder in the navigation by its pages."""
    config["nav"] = [_unfolded(item) for item in config["nav"]]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    # By name, so that the type checker needs no MkDocs: only `make docs` installs it.
    file = importlib.import_module("mkdocs.structure.files").File
    for source, page in OUTSIDE.items():
        files.append(file.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_others: Any) -> str:
    """Make the page's links those of the site."""
    return with_links_of_the_site(markdown, str(page.file.src_uri))


def with_links_of_the_site(markdown: str, page: str) -> str:
    """The text of a page with the links of the site.

    Args:
        markdown: Its text, with links as they are in the repository.
        page: Its path on the site.
    """
    source = next((path for path, on_site in OUTSIDE.items() if on_site == page), f"docs/{page}")
    parts = _FENCED.split(markdown)  # fenced blocks are the odd ones
    for at in range(0, len(parts), 2):
        parts[at] = _LINK.sub(lambda one: _link(one, source, page), parts[at])
    return "".join(parts)


def _link(found: re.Match[str], source: str, page: str) -> str:
    image, text, target = found.groups()
    if re.match(r"[a-z]+:|#", target):
        return found.group()
    path, _, anchor = target.partition("#")
    there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    on_site = OUTSIDE.get(there)
    if on_site is None and there.startswith("docs/") and (ROOT / there).is_file():
        on_site = there.removeprefix("docs/")
    if on_site is None:  # what is not there at all is left for MkDocs to find
        return text if (ROOT / there).exists() else found.group()
    relative = posixpath.relpath(on_site, posixpath.dirname(page) or ".")
    return f"{image}[{text}]({relative}{'#' if anchor else ''}{anchor})"


def _unfolded(item: Any) -> Any:
    """An item of the navigation, in which ``folder/`` stands for the pages of docs/folder."""
    match item:
        case str() if item.endswith("/"):
            return [f"{item}{path.name}" for path in sorted((ROOT / "docs" / item).glob("*.md"))]
        case list():
            return [_unfolded(one) for one in cast("list[Any]", item)]
        case dict():
            return {name: _unfolded(one) for name, one in cast("dict[str, Any]", item).items()}
        case _:
            return item
