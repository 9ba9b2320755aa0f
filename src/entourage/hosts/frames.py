"""What travels over a link: the kinds of call and message, the frames, and an error as one.

A frame is four bytes of length, big-endian, and a msgpack value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from entourage import errors
from entourage.errors import EntourageError

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Other = TypeVar("Other")

MAX_FRAME = 4 << 20


@dataclass(frozen=True, slots=True)
class Question(Generic[Request, Reply]):
    """A kind of call: its name, and the types of what is asked and answered.

    Attributes:
        name: As it stands in the frame.
        request, reply: What is asked, and what is answered. What arrives is checked against them.
    """

    name: str
    request: type[Request]
    reply: type[Reply]

    def replying(self, reply: type[Other]) -> Question[Request, Other]:
        """The same, where what was asked decides what is answered."""
        return Question(self.name, self.request, reply)


@dataclass(frozen=True, slots=True)
class Notice(Generic[Request]):
    """A kind of one-way message: its name, and the type of what it says."""

    name: str
    request: type[Request]


class Call(msgspec.Struct, frozen=True, tag="call", array_like=True):
    """A question that wants an answer."""

    number: int
    verb: str
    body: Any


class Answer(msgspec.Struct, frozen=True, tag="answer", array_like=True):
    """What a call returned."""

    number: int
    body: Any


class Fault(msgspec.Struct, frozen=True, tag="fault", array_like=True):
    """The error that a call raised, with the fields that every one of our errors has."""

    number: int
    kind: str
    message: str
    device: str
    host: str
    remedy: str


class Tell(msgspec.Struct, frozen=True, tag="tell", array_like=True):
    """A message that wants no answer."""

    verb: str
    body: Any


class Beat(msgspec.Struct, frozen=True, tag="beat", array_like=True):
    """A heartbeat. ``sent`` is the sender's clock, ``echo`` the newest that it received."""

    sent: int
    echo: int


Frame = Call | Answer | Fault | Tell | Beat
decoder = msgspec.msgpack.Decoder(Frame)
encoder = msgspec.msgpack.Encoder()


def taken(body: Any, kind: type[Any]) -> Any:
    """What has arrived, checked: the other end of the link is not trusted."""
    if kind is msgspec.Raw:  # only its reader understands it
        return msgspec.Raw(encoder.encode(body))
    return msgspec.convert(body, kind)


def revived(fault: Fault, peer: str) -> EntourageError:
    """The error as the other end raised it; its host is filled in where it named none."""
    kind: Any = getattr(errors, fault.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, EntourageError)):
        kind = EntourageError
    # One with fields of its own would lack them; and who is in doubt this host knows itself.
    if kind.__init__ is not EntourageError.__init__ or kind is errors.InDoubt:
        kind = EntourageError
    error: EntourageError = kind.__new__(kind)
    EntourageError.__init__(
        error,
        fault.message,
        device=fault.device,
        host=fault.host or peer,
        remedy=fault.remedy,
    )
    return error
