"""What a hypervisor's backend says of itself, before any of it is imported.

Each backend's folder has a ``descriptor.py`` with one ``Backend``. A package brings another with an
entry point of the group ``entourage.hypervisors``, whose value is a ``Backend``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from entourage.hypervisors.base import Hypervisor
    from entourage.settings.model import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where to, as a user writes it in the form of a hypervisor's URI.

    Attributes:
        host: As ssh knows it; empty where the URI names none.
        port: For ssh; None: the usual one.
        there: The name of the hypervisor on its own host.
        by_ssh: Whether the hypervisor's own way there is ssh.
        is_local: Whether its way is a socket of that host.
    """

    host: str
    port: int | None
    there: str
    by_ssh: bool
    is_local: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """A hypervisor on a host without Entourage, which is asked over the network.

    Attributes:
        uri: By which it is reached from here.
        address: Its host's, or its host's name; empty where the URI names none.
    """

    uri: str
    address: str


def _nowhere(_text: str) -> None:
    return None


def _same(name: str, _wanted: str | None) -> str:
    return name


def _by_us(_name: str, domain: str) -> str:
    return f"entourage start {domain}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One kind of hypervisor. Nothing here imports the backend but ``open``.

    A hypervisor's name stands in journals, and is told to the agent on its host: it must be enough
    to find the hypervisor again.

    Attributes:
        kind: What it is called, for people.
        names: The names that it answers to, for people.
        usual: The name of this host's, where nobody has said another.
        answers_to: Whether a name is one of its own.
        is_here: Whether this host has it, and what it takes to speak with it.
        open: Opens this host's of a name that it answers to.
        counterpart: The name of the one on the target that takes a domain of this one here; given
            the name here, and the one there that was asked for, if any.
        start_command: What a user types on the hypervisor's host to start a domain there; given the
            hypervisor's name, and the domain's.
        must_answer: Whether a list of this host's domains without its own would be no list.
        starts_files: Whether it starts a domain from a domain file.
        destination: Where to, of what a user has written; None where that is none of its URIs.
        name_elsewhere: The name of the one behind a URI, on a host without Entourage; empty where
            it cannot be asked over the network.
        elsewhere: What is behind such a name; None for a name of one on its own host.
        same_as: The usual name of a hypervisor of this host, of another name for that one; empty
            where it is none.
    """

    kind: str
    names: str
    usual: str
    answers_to: Callable[[str], bool]
    is_here: Callable[[], bool]
    open: Callable[[Settings, str], Hypervisor]
    counterpart: Callable[[str, str | None], str] = _same
    start_command: Callable[[str, str], str] = _by_us
    must_answer: bool = False
    starts_files: bool = False
    destination: Callable[[str], Destination | None] = _nowhere
    name_elsewhere: Callable[[str], str] = lambda _uri: ""
    elsewhere: Callable[[str], Elsewhere | None] = _nowhere
    same_as: Callable[[str], str] = lambda _name: ""
