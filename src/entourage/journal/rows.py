"""What a journal holds, as values, and what it answers when it will not take one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entourage.errors import JournalError
from entourage.handover.values import TERMINAL, Record, Role
from entourage.journal.details import Details, SourceDetails, TargetDetails

if TYPE_CHECKING:
    from collections.abc import Mapping


class DecisionRefusedError(JournalError):
    """A migration may not begin here: its id is taken, it is old, or another is not settled.

    Attributes:
        standing: The decision that stands against it.
    """

    def __init__(self, message: str, standing: Decision, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.standing = standing


class MigrationOverError(JournalError):
    """A resource was to be made for a migration that was called off meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One migration of one domain, as this host remembers it.

    Attributes:
        migration: The migration's id.
        role: This host's part in it.
        domain: The domain's UUID.
        name: The domain's name, for people.
        generation: Rises with each migration of the domain, wherever it is.
        record: What was decided.
        clean: Nothing is left to be done here.
        peer_host: The other host, as the user names it.
        peer_journal: The UUID of the other host's journal.
        details: The resolved domain, what to clean, whatever recovery needs; of the role's kind.
        began: Nanoseconds since the epoch; rises with each migration, whatever the clock does.
        changed: When the record was last set, likewise in ns; for people, never for rules.
    """

    migration: str
    role: Role
    domain: str
    name: str
    generation: int
    record: Record
    clean: bool = False
    peer_host: str = ""
    peer_journal: str = ""
    details: Details | None = None
    began: int = 0
    changed: int = 0

    @property
    def of_source(self) -> SourceDetails:
        """The details of a source; the usual ones where it has none."""
        return self.details if isinstance(self.details, SourceDetails) else SourceDetails()

    @property
    def of_target(self) -> TargetDetails:
        """The details of a target; the usual ones where it has none."""
        return self.details if isinstance(self.details, TargetDetails) else TargetDetails()

    @property
    def hypervisor(self) -> str:
        """The name of this host's hypervisor that has, or had, the domain."""
        details = self.of_source if self.role is Role.SOURCE else self.of_target
        return details.hypervisor

    @property
    def peer_is_a_save(self) -> bool:
        """Whether its other end is the directory of a save: a path, perhaps on another host."""
        return "/" in self.peer_host and "://" not in self.peer_host

    @property
    def settled(self) -> bool:
        """Decided, and nothing left to be done here."""
        return self.record in TERMINAL and self.clean

    @property
    def never_came(self) -> bool:
        """Whether nothing ever ran here by it: its generation is only what some source has said."""
        return self.role is Role.TARGET and self.record is Record.NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One resource; ``temporary`` ones are undone even after a migration that succeeded."""

    id: int
    kind: str
    spec: Mapping[str, Any]
    temporary: bool
