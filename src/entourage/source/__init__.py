"""The source's half of a migration: it tells the story, from TEST to the hand-over."""
