"""What a hypervisor says of its domains is data: read with an error of ours, whatever it holds."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

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
