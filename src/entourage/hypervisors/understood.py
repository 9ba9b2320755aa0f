"""What a hypervisor says of its domains is data: read with an error of ours, whatever it holds."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import msgspec

from entourage.domain import Domain
from entourage.errors import HypervisorError

_NOT_AS_EXPECTED = (
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError),
)


@contextlib.contextmanager
def understood(what: str, remedy: str = "") -> Generator[None]:
    """Tell of an answer that has another form than it should.

    Args:
        what: What is read, as ``QEMU's answer to query-block``.
        remedy: What the user can do about it.

    Raises:
        HypervisorError: Something in it is missing, or of another type.
    """
    try:
        yield
    except _NOT_AS_EXPECTED as error:
        said = f"{type(error).__name__}: {error}"
        raise HypervisorError(f"{what} is not understood ({said[:200]})", remedy=remedy) from error


def checked(domain: Domain, program: str) -> Domain:
    """A domain that a backend has read, if all of it can be expressed.

    Args:
        domain: The domain, which nothing has looked at.
        program: What moves it otherwise: ``virsh``, ``xl``.

    Raises:
        HypervisorError: It has something in it that cannot be (its name, say).
    """
    try:
        # As it goes over the link: that has no number of more than 64 bits, and only text.
        return msgspec.msgpack.decode(msgspec.msgpack.encode(domain), type=Domain)
    except (msgspec.ValidationError, OverflowError, UnicodeError) as error:
        raise HypervisorError(
            f"the domain {domain.name!r} cannot be read: {error}",
            remedy=f"rename it, or move it with `{program} migrate`",
        ) from error
