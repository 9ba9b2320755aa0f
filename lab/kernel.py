"""A kernel out of packages, wherever these have it and its modules, and however packed."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_PACKED = (".gz", ".xz", ".zst")


class KernelError(RuntimeError):
    """No kernel is where packages have it."""


@dataclass(frozen=True)
class Module:
    """A module, and what it needs to be loaded before it.

    Attributes:
        path: From the folder of the kernel's modules, as it is once unpacked.
        file: Where it is, packed or not.
        needs: The paths of others, likewise.
    """

    path: str
    file: Path
    needs: tuple[str, ...]

    def read(self) -> bytes:
        """What it is, unpacked: busybox loads no other, and unpacking takes guests long."""
        match self.file.suffix:
            case ".gz":
                return gzip.decompress(self.file.read_bytes())
            case ".xz":
                return lzma.decompress(self.file.read_bytes())
            case ".zst":
                argv = ["zstd", "--decompress", "--stdout", "--quiet", str(self.file)]
                return subprocess.run(argv, check=True, capture_output=True).stdout
            case _:
                return self.file.read_bytes()


@dataclass(frozen=True)
class Kernel:
    """What packages that were unpacked into a folder have of a kernel."""

    image: Path
    version: str
    modules: Path

    @classmethod
    def found(cls, root: Path) -> Kernel:
        """The only kernel below `root`: a system, or packages that were unpacked there."""
        images = [
            (path, path.name.removeprefix("vmlinuz-")) for path in root.glob("boot/vmlinuz-*")
        ] or [(path, path.parent.name) for path in root.glob("usr/lib/modules/*/vmlinuz")]
        for image, version in images[:1]:
            for place in ("usr/lib/modules", "lib/modules"):
                if (modules := root / place / version).is_dir():
                    return cls(image, version, modules)
        raise KernelError(f"no kernel and its modules are in {root}")


def merge_lib(root: Path) -> None:
    """Make /lib and /usr/lib one, as they are on systems: depmod looks only into one of them."""
    for one, other, way in (("lib", "usr/lib", "usr/lib"), ("usr/lib", "lib", "../lib")):
        if not (root / one).exists() and (root / other).exists():
            (root / one).parent.mkdir(exist_ok=True)
            (root / one).symlink_to(way)


def modules(folder: Path, names: Iterable[str]) -> list[Module]:
    """Those modules of an indexed folder, and all that they need; none that are built in."""
    known: dict[str, Module] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        unpacked = tuple(_unpacked(each) for each in needs.split())
        known[_unpacked(path)] = Module(_unpacked(path), folder / path, unpacked)
    by_name = {Path(path).stem.replace("-", "_"): module for path, module in known.items()}
    wanted = {module.path: module for name in names if (module := by_name.get(name))}
    for module in list(wanted.values()):
        wanted.update((path, known[path]) for path in module.needs)
    return [wanted[path] for path in sorted(wanted)]


def _unpacked(path: str) -> str:
    for suffix in _PACKED:
        path = path.removesuffix(suffix)
    return path
