"""What a hypervisor says of its domains is data: read with an error of ours, whatever it holds."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator

import msgspec

from entourage.domain import Domain
from entourage.errors import CannotExpress, HypervisorError
from entourage.settings.domainfile import FORMS

_WHERE = re.compile(r" - at `\$\.(\w+)(?:\[(\d+)\])?(?:\.(\w+))?")
"""Where msgspec says that something is wrong: ``$.block[0].path``."""

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
        CannotExpress: It has something in it that cannot be (its name, say).
    """
    try:
        # As it goes over the link: that has no number of more than 64 bits, and only text.
        return msgspec.msgpack.decode(msgspec.msgpack.encode(domain), type=Domain)
    except (msgspec.ValidationError, OverflowError, UnicodeError) as error:
        message, remedy = _explained(domain, str(error), program)
        raise CannotExpress(message, remedy=remedy) from error


def _explained(domain: Domain, said: str, program: str) -> tuple[str, str]:
    """What of a domain cannot be expressed, and what to do about it."""
    found = _WHERE.search(said)
    field, index, key = found.groups() if found else ("", None, None)
    cannot = f"the domain {domain.name!r} cannot be read"
    if not found:
        return f"{cannot}: {said}", f"move it with `{program} migrate`"
    if field == "name":
        return (
            f"{cannot}: its name must have {FORMS['name']}",
            f"rename it while it is off, or move it with `{program} migrate`",
        )
    whose, value = "its", getattr(domain, field, None)
    if index is not None and value:
        device = value[int(index)]
        whose, value = f"{device.label} has a", getattr(device, key or "", None)
    elif field == "tpm" and value:
        return (
            f"{cannot}: it has {len(value)} TPMs, and Entourage moves no more than one",
            f"move it with `{program} migrate`",
        )
    elif key:
        value = getattr(value, key, None)
    name = key or field
    wanted = FORMS.get(name) or _plainly(said.partition(" - at ")[0])
    return (
        f"{cannot}: {whose} {name} {value!r}, where Entourage knows {wanted}",
        f"change that, or move the domain with `{program} migrate`",
    )


def _plainly(said: str) -> str:
    """What msgspec wanted, ``Expected `int` >= 1``, as words."""
    plain = said.removeprefix("Expected ").partition(", got")[0].replace("`", "")
    for kind in ("int ", "float "):
        plain = plain.removeprefix(kind)
    return plain.replace(">= ", "no less than ").replace("<= ", "no more than ")
