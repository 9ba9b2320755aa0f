"""Files that another host names, resolved beneath directories that this host allows.

A path from the other end of a link is a claim. It is resolved, and what it leads to must lie
beneath an allowed directory. That directory is opened, and the kernel finds the rest beneath it
without any symbolic link: what somebody swaps meanwhile gains nothing. See openat2(2),
RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Generator, Sequence
from pathlib import Path

from entourage.errors import DeviceError

_OPENAT2 = 437  # by the same number on every architecture
_BENEATH, _NO_SYMLINKS = 0x08, 0x04
_HOW = struct.Struct("=QQQ")  # linux/openat2.h: flags, mode, resolve
_C = ctypes.CDLL(None, use_errno=True)


class NotAllowed(DeviceError):  # noqa: N818 - what it is, as EACCES
    """The path lies in no directory that this host allows, or leads out of it."""


class Beneath:
    """The directories beneath which a peer may name files.

    Args:
        directories: Absolute paths, trusted: a symbolic link among their parts is followed.
        setting: The key that they come from, for the remedy.
        anyones: Directories in which, and beneath which, every user may replace files, and that is
            accepted.
    """

    def __init__(
        self, directories: Sequence[str], setting: str, anyones: Sequence[str] = ()
    ) -> None:
        self._directories = tuple(Path(directory) for directory in directories)
        self._setting = setting
        self._anyones = tuple(anyones)

    @contextlib.contextmanager
    def parent(self, path: str) -> Generator[Path]:
        """The directory that a file lies in, opened for as long as the context lasts.

        Yields:
            The opened directory as a path that any process of this host's root may use, also with
            a name after it: no name on the way to it is looked up again. Whoever opens a file in
            it must not follow a link there (O_NOFOLLOW).

        Raises:
            NotAllowed: It is not beneath an allowed directory.
            OSError: There is no such directory.
        """
        plain = _plain(path)
        with self._opened(str(plain.parent), path) as handle:
            yield Path(through(handle))

    @contextlib.contextmanager
    def opened(self, path: str, flags: int = os.O_RDONLY) -> Generator[int]:
        """A file, opened for as long as the context lasts; no link on the way can be swapped in.

        Yields:
            A descriptor, by which other programs of this host's root may open that very file too:
            see ``through``.

        Raises:
            NotAllowed: It is not beneath an allowed directory, or leads out of it.
            OSError: It cannot be opened.
        """
        real = Path(self.real(path))
        more = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with self._opened(str(real.parent), path) as directory:
            handle = os.open(real.name, flags | more, dir_fd=directory)
        try:
            yield handle
        finally:
            os.close(handle)

    def real(self, path: str) -> str:
        """The path without any symbolic link, of what is there or could be made there.

        Raises:
            NotAllowed: It is not beneath an allowed directory, or leads out of it.
            OSError: Its directory is not there.
        """
        real = Path(os.path.realpath(_plain(path)))
        with self._opened(str(real.parent), path):
            return str(real)

    def real_by_path(self, path: str, *, links: bool = False) -> str:
        """The same of what somebody else will open by the path as it is, and not by what is found.

        The path must lie in an allowed directory by its own words, and so must what it leads to.
        How the settings call that directory is trusted; a link on the way to elsewhere is not,
        because whoever may change it could do so after this.

        Args:
            path: As it will be opened.
            links: Whether links within the allowed directory are the host's own.

        Raises:
            NotAllowed: See ``real``; or a link is on the way.
            OSError: Its directory is not there.
        """
        real, plain = Path(self.real(path)), _plain(path)
        ways = [
            links or Path(os.path.realpath(top)) / plain.relative_to(top) == real
            for top in self._directories
            if plain.is_relative_to(top)
        ]
        if plain != real and not any(ways):
            raise NotAllowed(
                f"{path} leads to {real} by a symbolic link, which could be another by the time"
                " that it is opened",
                remedy=f"name {real} itself, or add the directory by the name that has the link"
                f" to {self._setting} in the settings there",
            )
        return str(real)

    def named(self, path: str) -> None:
        """Check the path of what is not there, by its own words.

        Raises:
            NotAllowed: It would be beneath no allowed directory.
        """
        plain = _plain(path)
        if not any(plain.is_relative_to(top) for top in self._directories):
            raise self._outside(path, plain.parent)

    @contextlib.contextmanager
    def _opened(self, directory: str, path: str) -> Generator[int]:
        """A descriptor of a directory; ``path`` is what a refusal tells of."""
        real = Path(os.path.realpath(directory))
        for top in self._directories:
            base = Path(os.path.realpath(top))
            if not real.is_relative_to(base):
                continue
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            opened = os.open(base, flags)
            try:
                self._refuse_anyones(base, real)
                handle = self._open(opened, str(real.relative_to(base)), flags, path)
            finally:
                os.close(opened)
            try:
                yield handle
            finally:
                os.close(handle)
            return
        raise self._outside(path, real)

    def _open(self, base: int, rest: str, flags: int, path: str) -> int:
        how = _HOW.pack(flags, 0, _BENEATH | _NO_SYMLINKS)
        handle: int = _C.syscall(_OPENAT2, base, os.fsencode(rest), how, len(how))
        if handle >= 0:
            return handle
        number = ctypes.get_errno()
        if number in {errno.EXDEV, errno.ELOOP}:
            raise NotAllowed(f"{path} has become another file meanwhile")
        raise OSError(number, os.strerror(number), path)

    def _refuse_anyones(self, base: Path, real: Path) -> None:
        """See that not just anybody can put another file in the place of one.

        With the sticky bit only who owns a file can. Groups are the host's own business.
        """
        accepted = [Path(os.path.realpath(directory)) for directory in self._anyones]
        for directory in (real, *real.parents):
            if not directory.is_relative_to(base):
                return
            try:
                mode = directory.lstat().st_mode
            except FileNotFoundError:
                continue
            if not mode & stat.S_IWOTH or mode & stat.S_ISVTX:
                continue
            if not any(directory.is_relative_to(each) for each in accepted):
                raise NotAllowed(
                    f"every user may replace what is in {directory}",
                    remedy=f"chmod o-w {directory}; or, where its filesystem has no modes or no"
                    " untrusted user can get there, add it to agent.anyones-directories in the"
                    " settings there",
                )

    def _outside(self, path: str, directory: Path) -> NotAllowed:
        allowed = ", ".join(map(str, self._directories)) or "none"
        leads = "" if str(Path(path).parent) == str(directory) else f", which leads to {directory},"
        return NotAllowed(
            f"{path}{leads} is in none of the directories that are allowed here: {allowed}",
            remedy=f"add its directory to {self._setting} in the settings there",
        )


def through(handle: int) -> str:
    """A path by which any process of this host's root opens the file that is open here."""
    return f"/proc/{os.getpid()}/fd/{handle}"


def _plain(path: str) -> Path:
    plain = Path(path)
    if not plain.is_absolute() or ".." in plain.parts or "\0" in path or not plain.name:
        raise NotAllowed(f"{path!r} is no plain absolute path")
    return plain
