"""A user of this host that programs run as, and what that user may open."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from entourage.errors import DeviceError, HypervisorError
from entourage.hosts import programs

_SETPRIV = "setpriv"
_ANSWERS_WITHIN = 30.0  # seconds: a file server may not
# access(2) as the user: traversal, ACLs and what a file server says are all in its answer.
_DENIED = """
while [ $# -gt 0 ]; do
    case $1 in
        r) test -r "$2" ;;
        w) test -r "$2" && test -w "$2" ;;
        x) test -x "$2" ;;
    esac && printf y || printf n
    shift 2
done
"""


class Wanted(NamedTuple):
    """What is to be opened.

    Attributes:
        path: The file.
        how: ``r``: read; ``w``: read and written; ``x``: a directory that is passed through.
    """

    path: str
    how: str


class Account(NamedTuple):
    """A user without privileges.

    Attributes:
        name: The user's.
        uid, gid: The user's, by number.
        groups: More groups.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @classmethod
    def find(cls, name: str, devices: Sequence[str] = ()) -> Account | None:
        """A user of this host; None where there is none of that name.

        Args:
            name: The user's.
            devices: Device nodes whose groups are added, where the group may open them.
        """
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            return None
        groups = dict.fromkeys(os.getgrouplist(name, user.pw_gid))
        groups |= dict.fromkeys(filter(None, map(_group_of_device, devices)))
        return cls(name, user.pw_uid, user.pw_gid, tuple(groups))

    def command(self) -> list[str]:
        """What is put before a command line, so that it runs as this user.

        The program is executed in the place of what starts it: the process stays the same. It has
        no capabilities and gains none (no_new_privs).

        Raises:
            HypervisorError: setpriv(1) is not installed.
        """
        if shutil.which(_SETPRIV) is None:
            raise HypervisorError(
                f"{_SETPRIV} is not installed, and {self.name} cannot be changed to",
                remedy="install util-linux",
            )
        return [
            _SETPRIV, f"--reuid={self.uid}", f"--regid={self.gid}",
            f"--groups={','.join(map(str, self.groups or (self.gid,)))}",
            "--inh-caps=-all", "--no-new-privs", "--",
        ]  # fmt: skip

    async def denied(self, wanted: Sequence[Wanted]) -> list[Wanted]:
        """What of it this user may not open, asked of the kernel as this user."""
        if not wanted:
            return []
        arguments = [part for one in wanted for part in (one.how, one.path)]
        try:
            status, said, problem = await programs.run(
                *self.command(), "/bin/sh", "-c", _DENIED, "sh", *arguments,
                within=_ANSWERS_WITHIN, cwd="/",
            )  # fmt: skip
        except DeviceError as error:
            raise HypervisorError(
                f"what {self.name} may open is not known: {error.message}", remedy=error.remedy
            ) from error
        if status or len(said) != len(wanted):
            raise HypervisorError(
                f"nothing can be run as {self.name}: {problem}",
                remedy="run Entourage as root, with CAP_SETUID and CAP_SETGID",
            )
        return [one for one, answer in zip(wanted, said, strict=True) if answer == "n"]


def _group_of_device(path: str) -> int:
    """The group of a device that its group may read and write; 0 where there is no such."""
    try:
        status = Path(path).stat()
    except OSError:
        return 0
    both = stat.S_IRGRP | stat.S_IWGRP
    return status.st_gid if status.st_mode & both == both else 0
