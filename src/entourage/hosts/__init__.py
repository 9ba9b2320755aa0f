"""Hosts: the link between two of them, and what Entourage makes on one."""
