"""The descriptor of a hypervisor's backend: what must be known before the backend is imported.

Each backend's folder has a ``descriptor.py`` with one ``Backend``. A package adds another with an
entry point of the group ``entourage.hypervisors``, whose value is a ``Backend``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from entourage.hypervisors.base import Hypervisor
    from entourage.settings.model import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """The target of a migration, when a user has written it as a hypervisor's URI.

    Attributes:
        host: The host's name, as ssh knows it; empty where the URI names none.
        port: The port for ssh; None for the default.
        there: The name of the hypervisor on its own host.
        by_ssh: Whether the hypervisor itself is reached by ssh.
        is_local: Whether the hypervisor itself is reached by a socket of that host.
        ssh_options: What it says of how ssh reaches the host, as after ssh's ``-o``.
    """

    host: str
    port: int | None
    there: str
    by_ssh: bool
    is_local: bool
    ssh_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """A hypervisor whose half of the record a proxy agent of this host keeps.

    Attributes:
        uri: The URI by which it is reached from this host; of a save, its directory.
        address: The address or name of its host; empty where the URI names none.
        is_host: Whether it is on a host without Entourage, which is asked over the network; False:
            it is a directory that machines are saved in, seen from this host.
    """

    uri: str
    address: str
    is_host: bool = True

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return (self.address if self.is_host else "") or self.uri


class Saves(NamedTuple):
    """What a save of a backend's domain can be, beside one of its memory on the domain's own host.

    Attributes:
        checkpoints: Its guest can go on.
        live: It runs while its memory is copied, if that is asked for.
        non_live: It stands still while its memory is copied, if that is asked for.
        copies: Its disks can be copied, as of the moment of its memory.
        filters: Its memory can be compressed and encrypted.
        elsewhere: It can be made on another host.
        another: Another machine can be made of it.
        paused: It can be restored and left paused.
        since: Of its disks only what was written since a checkpoint can be copied.
        never_since: Why not, where that cannot be for any of them; empty where it can.
        stays_paused: Its guest, of a checkpoint, can be left paused.
        copies_stop: Where its disks are copied, it stands still while its memory is.
    """

    checkpoints: bool = False
    live: bool = False
    non_live: bool = False
    copies: bool = False
    filters: bool = False
    elsewhere: bool = False
    another: bool = False
    paused: bool = False
    since: bool = False
    stays_paused: bool = False
    copies_stop: bool = False
    never_since: str = ""


_MEMORY_ALONE: Final = Saves()


def _nowhere(_text: str) -> None:
    return None


def _same(name: str, _wanted: str | None) -> str:
    return name


def _by_us(_name: str, domain: str) -> str:
    return f"entourage start {domain}"


def _unknown(name: str, _domain: str) -> str:
    return f"see the documentation of {name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One kind of hypervisor. Only ``open`` imports the backend.

    A hypervisor's name is written into journals and sent to the agent on its host: the name alone
    must be enough to find the hypervisor again.

    Attributes:
        kind: What this kind of hypervisor is called, in messages.
        names: The names that it answers to, in messages: ``URIs as qemu:///system``.
        usual: The name of this host's hypervisor, where the user has given none.
        answers_to: Whether a name belongs to this backend.
        is_here: Whether this host has such a hypervisor, and what is needed to use it.
        open: Returns this host's hypervisor of a name that the backend answers to.
        counterpart: Returns the name of the hypervisor on the target that takes a domain of this
            one. It is given the name here, and the one there that the user asked for, if any.
        start_command: Returns what a user types on the hypervisor's host to start a domain there.
            It is given the hypervisor's name, and the domain's.
        console_command: Returns what a user types there to have a guest's console, of domains that
            say of no socket for it (``DomainState.console``); empty for none. Given the same.
        delete_hint: Returns what a user does there, in words, to be rid of a domain that is of no
            use any more. Given the same.
        resume_hint: Returns what a user does there, in words, to let a guest go on that the
            hypervisor has stopped.
        unseen: Whether its domains may come and go without a record of ours: somebody else migrates
            them, and is not always attended.
        ours_alone: Whether nobody but Entourage defines, moves or forgets its domains: what it has
            no more has left by a command of ours, which has written that down.
        must_answer: Whether a list of all domains of this host fails where this one does not
            answer; else its domains are left out.
        starts_files: Whether it starts a domain from a domain file.
        saves_by: What a user types to save a domain where Entourage cannot; empty where it can.
        saves: What a save of one of its domains can be.
        sends: The same of a save that is compressed, encrypted or on another host, where it is
            another; None: it is the same.
        destination: Parses a target that the user has written; None where it is no URI of this
            backend.
        name_elsewhere: Returns the name of the hypervisor behind a URI, on a host without
            Entourage; empty where it cannot be asked over the network.
        elsewhere: Returns what such a name stands for; None for the name of a hypervisor on its
            own host.
        same_as: Returns the usual name of a hypervisor of this host, for another name of it; empty
            where the name is not one of this host's.
    """

    kind: str
    names: str
    usual: str
    answers_to: Callable[[str], bool]
    is_here: Callable[[], bool]
    open: Callable[[Settings, str], Hypervisor]
    counterpart: Callable[[str, str | None], str] = _same
    start_command: Callable[[str, str], str] = _by_us
    console_command: Callable[[str, str], str] = lambda _name, _domain: ""
    delete_hint: Callable[[str, str], str] = _unknown
    resume_hint: Callable[[str, str], str] = _unknown
    unseen: bool = False
    ours_alone: bool = False
    must_answer: bool = False
    starts_files: bool = False
    saves_by: str = "the hypervisor's own command"
    saves: Saves = _MEMORY_ALONE
    sends: Saves | None = None
    destination: Callable[[str], Destination | None] = _nowhere
    name_elsewhere: Callable[[str], str] = lambda _uri: ""
    elsewhere: Callable[[str], Elsewhere | None] = _nowhere
    same_as: Callable[[str], str] = lambda _name: ""
