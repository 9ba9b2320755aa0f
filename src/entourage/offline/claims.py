"""What this host keeps of offline moves until it has defined their domains, a file for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from entourage import durable
from entourage.errors import EntourageError, plain_words, what_to_do
from entourage.offline.values import Offer

_MOST: Final = 1 << 22  # bytes of a claim


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a claim.

    Attributes:
        offer: The source's.
        seen: When the newest migration of the domain that this host knew then began, as
            ``Decision.began``; 0: it knew none.
        defining: Its hypervisor may have been told to define it. Whoever was killed then has not
            written down that it came; and others may have taken it away again since.
    """

    offer: Offer
    seen: int
    defining: bool = False


class Claims:
    """A host's.

    Args:
        state: Where the host keeps what must outlast a crash (``paths.state``).
        host: What it is called in errors.
    """

    def __init__(self, state: str, host: str = "") -> None:
        self._directory = Path(state, "claims")
        self._host = host

    def write(self, claim: Claim) -> None:
        """Keep one; on the disk when this returns. Raises EntourageError."""
        path = self.path(key(claim.offer.definition.domain.uuid))
        try:
            durable.write(path, msgspec.json.encode(claim))
        except OSError as error:
            raise EntourageError(
                plain_words(error), host=self._host, remedy=what_to_do(error)
            ) from error

    def read(self, uuid: str) -> Claim | None:
        """That of a domain; raises EntourageError where it cannot be read."""
        path = self.path(uuid)
        try:
            with path.open("rb") as file:
                return msgspec.json.decode(file.read(_MOST), type=Claim)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, RecursionError) as error:
            raise EntourageError(
                f"{path} cannot be read: {plain_words(error)}",
                host=self._host,
                remedy="install the same version on both hosts; the definition is in that file",
            ) from error

    def remove(self, uuid: str) -> None:
        """Keep that of a domain no more."""
        durable.remove(self.path(uuid))

    def __iter__(self) -> Iterator[Claim]:
        """All that can be read."""
        for path in sorted(self._directory.glob("*.json")):
            try:
                claim = self.read(path.stem)
            except EntourageError:
                continue  # whoever defines it is told
            if claim is not None:
                yield claim

    def path(self, uuid: str) -> Path:
        """The file of that of a domain."""
        return self._directory / f"{uuid}.json"


def key(uuid: str | None) -> str:
    """A UUID as locks, journals and claims have it."""
    return str(uuid).lower()
