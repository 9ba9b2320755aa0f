"""The target's half of a migration: the agent, and what it makes for an arrival."""
