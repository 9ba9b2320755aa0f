"""The version of Entourage; here alone, so that it can be asked for without anything else."""

__version__ = "0.1.0"
