"""An external migration tool for tests."""

from __future__ import annotations

from dataclasses import dataclass

from lab.host import Host


@dataclass(frozen=True)
class Tool:
    """An external tool, the same on all hosts, that logs how it is called."""

    hosts: tuple[Host, ...]
    path: str = "/usr/local/sbin/move-it"
    log: str = "/var/log/move-it"

    def write(self, body: str) -> None:
        """Make it do something after it has logged its call; ``$step``, ``$recover`` are set."""
        lines = [
            "#!/bin/sh",
            f"line=$(printf '%s\\037' \"$@\"); printf '%s\\n' \"$line\" >>{self.log}",
            "recover=no type= step=",
            "before=",
            "for word; do",
            "    case $before in -type) type=$word ;; -step) step=$word ;; esac",
            '    [ "$word" != -recover ] || recover=yes',
            "    before=$word",
            "done",
            body,
        ]
        for host in self.hosts:
            host.path(self.path).write_text("\n".join(lines) + "\n")
            host.path(self.path).chmod(0o755)
            host.path(self.log).write_text("")

    def calls(self) -> list[list[str]]:
        """How it was called since it was written, on whichever host."""
        text = "".join(host.path(self.log).read_text() for host in self.hosts)
        return [line.split("\037")[:-1] for line in text.splitlines()]

    def __str__(self) -> str:
        return self.path
