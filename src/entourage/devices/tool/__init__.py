"""The external migration tool of 2006: its controller, its calls, its processes."""
