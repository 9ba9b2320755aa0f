"""One migration, as the journals of both hosts have it when it has just begun."""

from __future__ import annotations

from entourage.handover.values import Record, Role
from entourage.journal.journal import Decision

ARMED = Decision(
    migration="m-1",
    role=Role.SOURCE,
    domain="5b6e6d0e-0000-4000-8000-000000000001",
    name="web1",
    generation=1,
    record=Record.ARMED,
    peer_host="b",
    peer_journal="T",
)
