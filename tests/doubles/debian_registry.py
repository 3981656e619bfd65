"""Debian's `docker-registry` on loopback, with TLS and Basic auth or a token server, or plain."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

USER, PASSWORD = "AWS", "secret"
_BCRYPT = "$2y$05$eYJowfSsd0lnnD.8LREsCOwj7PxsWR2s90PwzlvzODbQytkarl/ES"
"""Of PASSWORD; `htpasswd -nbB -C 5 AWS secret` makes another."""

Kind = Literal["plain", "basic", "token"]


@dataclass
class Running:
    """A registry that answers at `host`."""

    host: str
    certificate: Path
    """To be trusted; the file is there where it speaks TLS."""
    data: Path
    process: subprocess.Popen[bytes]
    tokens: Counter[str] = field(default_factory=Counter)
    """Scopes that tokens were given for."""


def is_installed() -> bool:
    return shutil.which("docker-registry") is not None


@contextmanager
def debian_registry(folder: Path, kind: Kind, token_lifetime_s: int = 60) -> Iterator[Running]:
    """Start one with its data and certificate in `folder`; stopped at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    key = _certified(folder)
    port, tokens = _free_port(), Counter[str]()
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    server = None
    if kind != "plain":
        names = {"certificate": str(folder / "tls.crt"), "key": str(folder / "tls.key")}
        config["http"]["tls"] = names
    if kind == "basic":
        (folder / "htpasswd").write_text(f"{USER}:{_BCRYPT}\n")
        config["auth"] = {"htpasswd": {"realm": "here", "path": str(folder / "htpasswd")}}
    if kind == "token":
        server = _TokenServer(folder, key, token_lifetime_s, tokens)
        config["auth"] = {
            "token": {
                "realm": f"https://127.0.0.1:{server.server_port}/token",
                "service": "here",
                "issuer": "us",
                "rootcertbundle": str(folder / "tls.crt"),
            }
        }
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    process = subprocess.Popen(
        ["docker-registry", "serve", folder / "config.yml"],
        stdout=subprocess.DEVNULL, stderr=(folder / "log").open("wb"),
    )  # fmt: skip
    try:
        _wait_for(port, process)
        yield Running(f"127.0.0.1:{port}", folder / "tls.crt", folder / "data", process, tokens)
    finally:
        process.kill()
        process.wait()
        if server:
            server.shutdown()
            server.server_close()


def docker_config(folder: Path, *hosts: str) -> Path:
    """A folder for DOCKER_CONFIG with the login for `hosts`."""
    folder.mkdir(exist_ok=True)
    auth = {"auth": base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
    (folder / "config.json").write_text(json.dumps({"auths": dict.fromkeys(hosts, auth)}))
    return folder


def _certified(folder: Path) -> rsa.RSAPrivateKey:
    """A key, and a certificate that vouches for itself and for 127.0.0.1."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(x509.random_serial_number()))])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )  # fmt: skip
    return key


class _TokenServer(ThreadingHTTPServer):
    """Gives tokens as Docker Hub's does: anonymous ones read `public/…`, the user may do all."""

    def __init__(
        self, folder: Path, key: rsa.RSAPrivateKey, lifetime_s: int, given: Counter[str]
    ) -> None:
        super().__init__(("127.0.0.1", 0), _TokenHandler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.key, self.lifetime_s, self.given = key, lifetime_s, given
        pem = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
        self.chain = [base64.b64encode(pem.public_bytes(serialization.Encoding.DER)).decode()]

    def token(self, is_user: bool, service: str, scopes: list[str]) -> str:
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            allowed = [
                one for one in actions.split(",")
                if is_user or (one == "pull" and name.startswith("public/"))
            ]  # fmt: skip
            access.append({"type": kind, "name": name, "actions": allowed})
            self.given[scope] += 1
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": self.chain}
        # The registry allows a minute of leeway at a token's end.
        body = {
            "iss": "us", "sub": "x", "aud": service, "jti": str(time.time_ns()), "iat": now,
            "nbf": now - 90, "exp": now + self.lifetime_s - 60, "access": access,
        }  # fmt: skip
        signed = f"{_coded(head)}.{_coded(body)}"
        signature = self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


class _TokenHandler(BaseHTTPRequestHandler):
    server: _TokenServer

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        said = self.headers.get("Authorization", "")
        right = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if said and said != right:
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        scopes = [one for scope in query.get("scope", []) for one in scope.split()]
        body = json.dumps({"token": self.server.token(bool(said), query["service"][0], scopes)})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def _coded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("docker-registry does not start")
