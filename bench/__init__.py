"""Benchmarks: Entourage beside its peers, in turn, on the same two lab hosts with the same guest.

``python -m bench`` runs them; ``docs/benchmarks.md`` says how to read what they print.
"""
