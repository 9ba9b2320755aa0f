"""Saving a machine into a directory, and restoring it: migrations with a directory at one end."""
