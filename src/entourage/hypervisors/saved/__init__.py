"""Saved machines: a directory that takes a machine as a target does, and gives it as a source."""
