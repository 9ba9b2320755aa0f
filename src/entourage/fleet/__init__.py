"""Several domains, several hosts: what goes where, in which order, and who makes sure of it.

Nothing here moves a domain by itself: each move is ``entourage migrate`` on the domain's host.
"""
