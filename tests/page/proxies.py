"""Real proxies before the page, from the examples of docs/fleet.md, each at a socket of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2

from tests.unit.eventually import wait_until

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "fleet.md"
NAME: Final = "fleet.example.org"
USERS: Final[Mapping[str, str]] = {"alice": "her word", "mallory": "his word"}
PAM_MODULE: Final = Path("/usr/lib/nginx/modules/ngx_http_auth_pam_module.so")
_PAGE: Final = "unix:/run/entourage-fleet/page.sock"
_BASIC_AUTH: Final = (2, 8)
"""The first Caddy that calls it so; before, it was ``basicauth``."""
_USER: Final = 65533
"""The first of the numbers that users of the test have."""


def examples(language: str) -> list[str]:
    """The examples of that language in the document, as a reader has them."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL
    )


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """The text for this machine; each word that is replaced is in it once or more."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in the example any more"
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class Proxy:
    """One that runs.

    Attributes:
        socket: Where it listens.
        scheme: How it is spoken to.
    """

    socket: Path
    scheme: str

    @contextlib.contextmanager
    def client(self, user: str = "", **headers: str) -> Generator[httpx2.Client]:
        """A browser; it sends a user's password, if one is named, and what else it likes."""
        with httpx2.Client(
            base_url=f"{self.scheme}://{NAME}",
            transport=httpx2.HTTPTransport(uds=str(self.socket), verify=False),
            auth=(user, USERS[user]) if user else None,
            headers=headers,
            trust_env=False,
            timeout=20,
        ) as client:
            yield client


@contextlib.contextmanager
def nginx(path: Path, page: Path, server: str, *, within: Sequence[str] = ()) -> Generator[Proxy]:
    """nginx with that server block.

    Args:
        path: A directory for it.
        page: The page's socket.
        server: An example of the document's, but for who its users are.
        within: What runs it.
    """
    front, (certificate, key) = path / "front.sock", _certificate(path)
    there = {"listen 443 ssl;": f"listen unix:{front} ssl;", _PAGE: f"unix:{page}"}
    temporary = "".join(
        f"{kind}_temp_path {path}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    more = f"load_module {PAM_MODULE};\n" if "auth_pam" in server else ""
    user = "user root;\n" if os.geteuid() == 0 else ""
    config = path / "nginx.conf"
    config.write_text(
        f"{more}{user}daemon off;\npid {path}/nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n"
        f"{temporary}ssl_certificate {certificate};\nssl_certificate_key {key};\n"
        f"{replaced(server, there)}}}\n"
    )
    command = [*within, "nginx", "-e", str(path / "error.log"), "-c", str(config)]
    with _runs(command, path):
        proxy = Proxy(front, "https")
        _until_it_answers(proxy)
        yield proxy


def password_file(path: Path) -> Path:
    """nginx's file of users."""
    file = path / "users"
    hashed = {
        user: _said("openssl", "passwd", "-apr1", word).strip() for user, word in USERS.items()
    }
    file.write_text("".join(f"{user}:{each}\n" for user, each in hashed.items()))
    return file


@contextlib.contextmanager
def caddy(path: Path, page: Path, site: str) -> Generator[Proxy]:
    """Caddy with that site, by HTTP: a certificate of an authority is asked for else."""
    front = path / "front.sock"
    there = {f"{NAME} {{": f"http://{NAME} {{\n    bind unix/{front}", _PAGE[5:]: str(page)}
    text = replaced(site, there)
    major, minor = _said("caddy", "version").lstrip("v").split(".")[:2]
    if (int(major), int(minor)) < _BASIC_AUTH and "basic_auth {" in text:
        text = text.replace("basic_auth {", "basicauth {")
    config = path / "Caddyfile"
    config.write_text(f"{{\n    admin off\n}}\n{text}")
    homes = {"HOME": str(path), "XDG_DATA_HOME": str(path), "XDG_CONFIG_HOME": str(path)}
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(config)]
    with _runs(command, path, **homes):
        proxy = Proxy(front, "http")
        _until_it_answers(proxy)
        yield proxy


def bcrypt(word: str) -> str:
    """A password as Caddy has it."""
    return _said("caddy", "hash-password", "--plaintext", word).strip()


@contextlib.contextmanager
def users_of_the_system(path: Path, service: str) -> Generator[list[str]]:
    """A mount namespace in which the users are accounts, and a service of PAM's is there.

    Yields:
        What runs a command in it.
    """
    files = {name: path / Path(name).name for name in ("/etc/passwd", "/etc/shadow", "/etc/pam.d")}
    files["/etc/pam.d"].mkdir()
    for one in Path("/etc/pam.d").iterdir():
        shutil.copy(one, files["/etc/pam.d"])
    (files["/etc/pam.d"] / "entourage-fleet").write_text(service)
    passwd, shadow = Path("/etc/passwd").read_text(), Path("/etc/shadow").read_text()
    for number, (user, word) in enumerate(USERS.items()):
        hashed = _said("openssl", "passwd", "-6", word).strip()
        passwd += f"{user}:x:{_USER - number}:65534::/nonexistent:/usr/sbin/nologin\n"
        shadow += f"{user}:{hashed}:19000:0:99999:7:::\n"
    files["/etc/passwd"].write_text(passwd)
    files["/etc/shadow"].write_text(shadow)
    files["/etc/shadow"].chmod(0o600)
    mounts = "; ".join(f'mount --bind "{there}" {name}' for name, there in files.items())
    yield ["unshare", "--mount", "sh", "-ec", f'{mounts}; exec "$@"', "sh"]


def _certificate(path: Path) -> tuple[Path, Path]:
    certificate, key = path / "cert.pem", path / "key.pem"
    _said(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-subj", f"/CN={NAME}", "-days", "2", "-out", str(certificate),
        "-keyout", str(key),
    )  # fmt: skip
    return certificate, key


@contextlib.contextmanager
def _runs(command: list[str], path: Path, **environment: str) -> Generator[None]:
    with (path / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, **environment},
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def _until_it_answers(proxy: Proxy) -> None:
    def listens() -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(proxy.socket))
            return True
        return False

    wait_until(listens)


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
