"""Several real hosts on one machine: the demo, the end-to-end tests and the benchmarks use it.

`lab.hosts.Lab` makes the hosts, `lab.guest` what runs on them, `lab.observer` watches from
outside. See README.md in this folder.
"""
