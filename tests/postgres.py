"""A real PostgreSQL for tests on this machine: its own data, a unix socket or a loopback port."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

from sqlalchemy import URL

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
MISSING = "needs PostgreSQL: apt-get install postgresql"
_NOBODY = 65534


class Postgres:
    """It. It refuses to run as root, and runs as nobody then.

    Args:
        path: Its directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = path / "data"
        if os.geteuid() == 0:
            os.chown(path, _NOBODY, _NOBODY)
        # ICU's English: text is not in the order of its bytes, as on a server of somebody's.
        self._run(
            "initdb", "-D", str(self._data), "-A", "trust", "-U", "nobody", "--no-sync",
            "-E", "UTF8", "--locale-provider=icu", "--icu-locale=en", "--locale=C",
        )  # fmt: skip

    @property
    def url(self) -> str:
        """Where it is, for ``--database``."""
        where = URL.create(
            "postgresql", "nobody", database="postgres", query={"host": str(self._path)}
        )
        return where.render_as_string(hide_password=False)

    def start(self) -> None:
        """It answers when this returns."""
        options = f"-c listen_addresses= -c unix_socket_directories={self._path} -c fsync=off"
        self._run(
            "pg_ctl", "-D", str(self._data), "-w", "-l", str(self._path / "log"),
            "-o", f"{options} -c shared_buffers=16MB", "start",
        )  # fmt: skip

    def ask_password_of(self, user: str) -> None:
        """Have a user log in with a password from now on."""
        rules = self._data / "pg_hba.conf"
        rules.write_text(f"local all {user} scram-sha-256\n{rules.read_text()}")
        self.say("select pg_reload_conf()")

    def say(self, statement: str) -> None:
        """Have it do something, as its own user."""
        self._run("psql", "-q", "-h", str(self._path), "-U", "nobody", "-c", statement, "postgres")

    def stop(self) -> None:
        """Nobody is connected any more when this returns."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    @contextlib.contextmanager
    def frozen(self) -> Generator[None]:
        """All its processes stand still: connections are made by the kernel, and nobody answers."""
        pids = self._pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _pids(self) -> list[int]:
        """The first process, which makes the others, comes first."""
        first = int((self._data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def _run(self, program: str, *words: str) -> None:
        command = [str(PROGRAMS[-1].parent / program), *words]
        if os.geteuid() == 0:
            who = str(_NOBODY)
            command = ["setpriv", f"--reuid={who}", f"--regid={who}", "--clear-groups", *command]
        subprocess.run(
            command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, cwd="/", timeout=60,
        )  # fmt: skip


@contextlib.contextmanager
def postgres() -> Generator[Postgres]:
    """One that runs, and is gone with all it has kept when the context ends."""
    # Not below pytest's own: nobody else gets there, and a socket's path is short.
    path = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        database = Postgres(path)
        database.start()
        try:
            yield database
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):  # a test has stopped it
                database.stop()
    finally:
        shutil.rmtree(path)
