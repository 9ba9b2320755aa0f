"""The journal's statements, in SQLite's SQL."""

from __future__ import annotations

from typing import Final

from entourage.journal.file import COLUMNS

INSERT: Final = f"""
INSERT INTO decisions ({COLUMNS["decisions"]})
VALUES (:migration, :role, :domain, :name, :generation, :record, :clean, :peer_host,
    :peer_journal, :details, :began, :changed)
"""  # noqa: S608 - the names are ours
ADVANCE: Final = """
UPDATE decisions SET record=?, clean=0, changed=?
WHERE migration=? AND role=? AND record IN (SELECT value FROM json_each(?))
"""
SELECT: Final = f"""
SELECT {COLUMNS["decisions"]}
FROM decisions
WHERE (:migration IS NULL OR (migration=:migration AND role=:role))
  AND (:domain IS NULL OR domain=:domain)
ORDER BY domain, generation DESC, began DESC
"""  # noqa: S608 - the same
LEDGER_ADD: Final = """
INSERT INTO ledger (migration, role, kind, spec, temporary, added, changed)
SELECT :migration, :role, :kind, :spec, :temporary, :now, :now FROM decisions
WHERE migration=:migration AND role=:role AND record IN ('armed', 'open', 'go', 'ran')
"""
LEDGER_ROWS: Final = """
SELECT id, kind, spec, temporary FROM ledger
WHERE migration=? AND role=? AND state='made' AND temporary>=? ORDER BY id DESC
"""
PRUNE: Final = """
DELETE FROM ledger WHERE id IN (
    SELECT l.id FROM ledger AS l JOIN decisions AS d ON d.migration=l.migration AND d.role=l.role
    WHERE l.state!='made' AND d.clean=1
      AND (d.changed<:before
           OR d.began<=(SELECT began FROM decisions ORDER BY began DESC LIMIT 1 OFFSET :keep))
    ORDER BY l.id LIMIT 500)
"""
"""Forgets what settled migrations made: some at a time, so that it needs little time and room."""
