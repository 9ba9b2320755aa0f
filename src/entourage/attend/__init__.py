"""Gives somebody else's migration the four device steps: ``virsh migrate``, for example."""
