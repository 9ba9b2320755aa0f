"""JSON that another version of Entourage, or a host that is not to be trusted, has written."""

from __future__ import annotations

from types import UnionType
from typing import Any, TypeVar, overload

import msgspec

from entourage.errors import EntourageError

Kind = TypeVar("Kind")


class NotUnderstoodError(EntourageError):
    """It cannot be understood here."""


@overload
def json_of(text: str | bytes, kind: type[Kind]) -> Kind: ...
@overload
def json_of(text: str | bytes, kind: UnionType) -> Any: ...
def json_of(text: str | bytes, kind: Any) -> Any:
    """What is in a text.

    Args:
        text: JSON.
        kind: What it is to be.

    Raises:
        NotUnderstoodError: It is something else, or nested too deep.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotUnderstoodError(
            f"the fleet's database: written by another version of Entourage ({error})",
            remedy="upgrade this controller",
        ) from error
