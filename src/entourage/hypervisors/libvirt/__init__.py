"""Domains of stock libvirt: Entourage drives the five phases of its managed migration itself."""
