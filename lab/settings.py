"""What `entourage` on a lab host goes by, unless a test says otherwise."""

from __future__ import annotations

from lab.guest_image import PUBLIC

SETTINGS = f"""\
# Each look at what the guest has written is a chance to lose a page (lab/vcpus.py): few looks.
[[migration.convergence]]
after = 0
downtime-limit = "300ms"
[[migration.convergence]]
after = 60
downtime-limit = "2s"
# What tests have elsewhere than in a host's /srv: the guests' kernel, storage that both hosts see,
# block devices made of files, of the same name on all hosts or of a host's own, and a directory
# that a libvirt domain shares with its host.
[agent]
image-directories = ["/srv", "/var/lib/libvirt/images", "/mnt/shared"]
boot-directories = ["/usr/share", "{PUBLIC}"]
devices = ["/dev/loop*", "/dev/shm/*", "/opt"]
allow-unencrypted = true
"""
