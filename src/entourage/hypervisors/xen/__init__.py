"""Xen domains, moved by the stock xl with Entourage in the place of ssh."""
